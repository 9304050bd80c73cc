"""`rwkvkit verify` finds what is wrong, and `prepare` leaves a card."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from rwkvkit.data.verify import verify_dataset
from rwkvkit.errors import DataError
from rwkvkit.recipe.dataset import make_build
from rwkvkit.recipe.load import load_recipe

CHAT = [
    {"messages": [{"role": "user", "content": f"Question {i}?"},
                  {"role": "assistant", "content": f"Answer {i}."}]}
    for i in range(60)
]  # fmt: skip
DATA = "out/tiny/data"


def test_a_good_dataset(folder: Path, run) -> None:
    split = "prepare=[{read: text.jsonl}, {encode: {vocab: bytes.txt}}, {split: 0.2}, "
    assert (
        run("prepare", "r.yaml", "--set", split + f"{{write-binidx: {DATA}}}, {{plan: {{}}}}]").code
        == 0
    )
    for name in (DATA, f"{DATA}.bin"):
        outcome = run("verify", name, "--vocab", "bytes.txt")
        assert outcome.code == 0
        assert "ok: 4 files agree with the manifest" in outcome.out
        assert "ok: data-val: the index agrees with the data" in outcome.out
        assert "sample documents are text" in outcome.out
    part = run("verify", f"{DATA}-val", "--vocab", "bytes.txt")
    assert part.code == 4
    assert f"hint: it is part of another dataset: rwkvkit verify {DATA} checks both" in part.err
    facts = run("verify", DATA, "--vocab", "bytes.txt", "--json").facts
    assert len(facts["verified"]) == 8
    other = run("verify", DATA)
    assert other.code == 4
    assert "another vocabulary" in other.err
    assert "hint: name its vocabulary file or tokenizer.json with --vocab" in other.err


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_flipped_bit_is_found(folder: Path, run, suffix: str) -> None:
    assert run("prepare", "r.yaml").code == 0
    path = folder / f"{DATA}.{suffix}"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert f"{DATA}.{suffix}: not the file that the manifest describes" in outcome.err
    path.unlink()
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert "hint: check its permissions; where it is gone, rwkvkit prepare" in outcome.err


def test_wrong_counts_are_found(folder: Path, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    rewrite(folder, lambda manifest: manifest.update(documents=7))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert "80 documents and" in outcome.err
    assert "the manifest has 7 and" in outcome.err
    assert "hint: it was changed or damaged" in outcome.err


def rewrite(folder: Path, change) -> None:
    """Change what the manifest says, and take away the hash that would tell."""
    record = folder / f"{DATA}.manifest.json"
    manifest = json.loads(record.read_text())
    del manifest["sha256"]
    change(manifest)
    record.write_text(json.dumps(manifest))


def forge(folder: Path, change) -> None:
    """Change tokens, and the manifest so that the hashes agree with them."""
    from rwkvkit.files import sha256

    path = folder / f"{DATA}.bin"
    tokens = np.fromfile(path, "<u2")
    change(tokens)
    tokens.tofile(path)
    rewrite(folder, lambda manifest: manifest["outputs"][0].update(sha256=sha256(path)))


@pytest.mark.parametrize(
    ("place", "token", "message"),
    [
        (5, 60_000, "token 5 is 60000, not in 0..256"),
        (-1, 7, "the document does not end with token 0"),
        (3, 0xE9 + 1, "the tokens are no text"),
    ],
)
def test_wrong_tokens_are_found(folder: Path, run, place: int, token: int, message: str) -> None:
    assert run("prepare", "r.yaml").code == 0
    forge(folder, lambda tokens: tokens.__setitem__(place, token))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert message in outcome.err


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("magic_prime", lambda prime: prime - 6),  # mostly no prime
        ("magic_prime", lambda prime: prime + 3),
        ("magic_prime", lambda prime: 5),  # one, but not the largest
        ("magic_prime", lambda prime: -1),
        ("my_exit_tokens", lambda tokens: tokens - 1),
        ("ctx_len", lambda ctx_len: 0),
    ],
)
def test_wrong_plans_are_found(folder: Path, run, name: str, wrong) -> None:
    assert run("prepare", "r.yaml").code == 0
    value = wrong(json.loads((folder / f"{DATA}.manifest.json").read_text())["plan"][name])
    rewrite(folder, lambda manifest: manifest["plan"].update({name: value}))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert f"{name} {value}" in outcome.err


def test_a_wrong_fingerprint_is_found(folder: Path, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    rewrite(folder, lambda manifest: manifest.update(seed=43))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert "the fingerprint is not that of the recipe and the inputs" in outcome.err
    assert "hint: it was changed or damaged" in outcome.err


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(folder: Path, run) -> None:
    """By ``verify``; and ``prepare`` makes the dataset again."""
    assert run("prepare", "r.yaml").code == 0
    record = folder / f"{DATA}.manifest.json"
    content = record.read_bytes()
    for place in range(0, len(content), 7):
        if content[place : place + 1].isspace():
            continue
        record.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError):
            list(verify_dataset(folder / DATA, folder / "bytes.txt"))
    record.write_bytes(content.replace(b'"rejected": 0', b'"rejected": 1'))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert "the manifest cannot be read: damaged" in outcome.err
    assert "the manifest cannot be read: damaged" in run("prepare", "r.yaml").err
    assert record.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["prepare"][1].update(stage="encodf"),
        lambda manifest: manifest["prepare"][1]["settings"].pop("vocabulary"),
        lambda manifest: manifest["outputs"][0].update(path=""),
        lambda manifest: manifest["outputs"][0].update(path="../data.bin"),
        lambda manifest: manifest["outputs"][0].update(path="data\0bin"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_an_error(folder: Path, run, change) -> None:
    assert run("prepare", "r.yaml").code == 0
    rewrite(folder, change)
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert "the manifest cannot be read" in outcome.err
    assert "hint: build the output again" in outcome.err
    assert run("prepare", "r.yaml").code == 0


def test_no_manifest_to_go_by(folder: Path, run) -> None:
    outcome = run("verify", "absent")
    assert outcome.code == 4
    assert "no manifest to go by" in outcome.err
    assert "rwkvkit inspect" in outcome.err


def test_the_card_shows_numbers_samples_and_the_mask(folder: Path, run) -> None:
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CHAT))
    read = "prepare.read={path: chat.jsonl, chat: messages}"
    assert run("prepare", "r.yaml", "--set", read).code == 0
    card = (folder / f"{DATA}.md").read_text()
    assert "| documents | 120 |" in card
    assert "chat.jsonl" in card
    assert "What counts in the loss stands between « and »." in card
    assert "«" in card.partition("## Samples")[2]
    assert "Question" in card
    assert "![lengths and token frequencies](data.png)" in card
    assert (folder / f"{DATA}.png").read_bytes().startswith(b"\x89PNG")
    assert run("verify", DATA, "--vocab", "bytes.txt").code == 0
    left = [folder / f"out/tiny/.data.{kind}.abc.tmp" for kind in ("md", "png")]
    (folder / f"{DATA}.md").unlink()
    for path in left:
        path.touch()
    assert "up to date" in run("prepare", "r.yaml", "--set", read).err
    assert (folder / f"{DATA}.md").read_text() == card
    assert not any(path.exists() for path in left)


def test_a_build_that_was_killed_before_its_card_gets_it_later(folder: Path, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    old = (folder / f"{DATA}.md").read_text()
    make_build(load_recipe("r.yaml", ["prepare.repeat-shuffle.epochs=3"])).run()
    assert "up to date" in run("prepare", "r.yaml", "--set", "prepare.repeat-shuffle.epochs=3").err
    assert "| documents | 120 |" in (folder / f"{DATA}.md").read_text()
    assert "| documents | 80 |" in old


def test_a_dataset_of_another_tokenizer(folder: Path, run) -> None:
    words = {word: i for i, word in enumerate(["<|endoftext|>", "?", "The", "number", "follows"])}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save("words.json")
    assert run("prepare", "r.yaml", "--set", "prepare.encode=words.json").code == 0
    outcome = run("verify", DATA, "--vocab", "words.json")
    assert outcome.code == 0, outcome.err
    assert "80 sample documents end as documents do" in outcome.out
    assert run("verify", DATA).code == 4
    card = (folder / f"{DATA}.md").read_text()
    assert "The number ? follows" in card


def test_a_chat_trains_on_what_the_assistant_says(folder: Path, run) -> None:
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CHAT))
    few = ["--set", "train.total_steps=2", "--set", "train.warmup_steps=0"]

    def first_loss(run_dir: str, loss: str) -> float:
        read = f"prepare.read={{path: text.jsonl, chat: messages, loss: {loss}}}"
        outcome = run("train", "r.yaml", *few, "--set", read, "--set", f"run_dir={run_dir}")
        assert outcome.code == 0, outcome.err
        row = (folder / run_dir / "metrics.jsonl").read_text().splitlines()[0]
        return json.loads(row)["loss"]

    masked = first_loss("masked", "assistant")
    assert (folder / f"{DATA}.mask").exists()
    assert first_loss("plain", "all") != masked
