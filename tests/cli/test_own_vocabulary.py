"""A model whose vocabulary is a tokenizer.json, from text to text."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rwkvkit.model.checkpoint import write_checkpoint
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights

PREPARE = (
    "prepare=[{read: text.jsonl}, {encode: tok.json}, {write-binidx: out/tiny/data}, {plan: {}}]"
)
OWN = ["--set", PREPARE, "--set", "model.vocab_size=280", "--set", "sample.prompt=The number"]


@pytest.fixture
def vocabulary(folder: Path) -> None:
    """A BPE over bytes in which 0 is no end of a document."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((folder / "text.jsonl").read_text().splitlines(), trainer)
    made.save(str(folder / "tok.json"))


@pytest.mark.usefixtures("vocabulary")
def test_from_text_to_text(folder: Path, run) -> None:
    prompts = 'train.evaluate={prompts: ["The number"], max_tokens: 5, every: 6}'
    outcome = run("train", "r.yaml", *OWN, "--set", prompts)
    assert outcome.code == 0, outcome.err
    assert "next: rwkvkit generate out/tiny/rwkv-final.pth --prompt" in outcome.out
    final = ["generate", "out/tiny/rwkv-final.pth", "--prompt", "The number", "--max-tokens", "5"]
    continued = run(*final, "--json")
    assert "tokenizer tok.json: the run's own" in continued.err
    text = continued.facts["text"]
    assert text == run(*final, "--vocab", "tok.json", "--json").facts["text"]
    assert f"'The number':\n{text}\n" in outcome.out
    lines = (folder / "out/tiny/samples.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["text"] == text
    (folder / "out/tiny/rwkv-final.pth").rename(folder / "moved.pth")
    other = run("generate", "moved.pth", *final[2:])
    assert other.code == 2
    assert "name the vocabulary file or tokenizer.json with --vocab" in other.err
    (folder / "moved.pth").rename(folder / "out/tiny/rwkv-final.pth")
    (folder / "tok.json").unlink()
    gone = run(*final)
    assert gone.code == 4
    assert "tok.json: the tokenizer of the run is not there" in gone.err


def test_a_prompt_of_which_the_tokenizer_leaves_nothing(folder: Path, run) -> None:
    model = ModelConfig(arch="x070", n_layer=1, n_embd=64, vocab_size=2)
    write_checkpoint(init_weights(model, 0), folder / "small.pth")
    letters = models.BPE({"a": 0, "</s>": 1}, [])  # it drops every other one
    tokenizers.Tokenizer(letters).save("tok.json")
    outcome = run("generate", "small.pth", "--vocab", "tok.json", "--prompt", "x")
    assert outcome.code == 2
    assert "prompt: the tokenizer leaves nothing of the prompt" in outcome.err
    assert "hint: give another text" in outcome.err


@pytest.mark.usefixtures("vocabulary")
@pytest.mark.parametrize(
    ("settings", "where"),
    [(["model.vocab_size=279", "sample.prompt=T"], "model.vocab_size"),
     (["model.vocab_size=9"], "sample.prompt")],
)  # fmt: skip
def test_a_model_that_does_not_know_the_tokens(
    folder: Path, run, settings: list[str], where: str
) -> None:
    outcome = run("train", "r.yaml", *OWN, *(f"--set={each}" for each in settings))
    assert outcome.code == 3
    assert f"error: {where}: " in outcome.err
    assert "and the model knows" in outcome.err
    assert "hint:" in outcome.err
    assert not (folder / "out").exists()
