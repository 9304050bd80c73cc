"""What ``rwkvkit generate`` asks of a model, and where its answer ends."""

import io
import sys
from pathlib import Path

import pytest
import torch

from rwkvkit.model.checkpoint import write_checkpoint
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights

ASKED = "System: Be brief.\n\nUser: Hi\nthere\n\nAssistant:"


def write_model(path: Path, *ids: int) -> None:
    """Write a model that goes through tokens, each there once, in a circle.

    A token's embedding is a direction of its own, and the head answers it with the next one.
    """
    weights = init_weights(ModelConfig(arch="x070", n_layer=1, n_embd=64, vocab_size=258), seed=1)
    for name in ("blocks.0.att.output.weight", "blocks.0.ffn.value.weight", "head.weight"):
        weights[name] = torch.zeros_like(weights[name])
    directions = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))[0]
    weights["emb.weight"] = directions[-1].repeat(258, 1)
    for direction, this, following in zip(directions, ids, ids[1:] + ids[:1], strict=False):
        weights["emb.weight"][this] = direction
        weights["head.weight"][following] = 9 * direction
    write_checkpoint(weights, path)


def ids(text: str) -> list[int]:
    """The tokens of single bytes."""
    return [byte + 1 for byte in text.encode()]


@pytest.fixture
def model(folder: Path) -> str:
    """Writes " ja!✓;", a line end and a colon, again and again."""
    write_model(folder / "model.pth", *ids(": ja!✓;\n"))
    return "model.pth"


GREEDY = ["--vocab", "bytes.txt", "--temperature", "0"]


def test_the_world_template_from_the_command_line(model: str, run) -> None:
    said = ["--user", " Hi\n\nthere", "--system", "Be brief.", "--max-tokens", "18", "--json"]
    asked = run("generate", model, *GREEDY, *said)
    assert asked.code == 0, asked.err
    assert asked.facts["prompt"] == ASKED
    assert asked.facts["text"].startswith(" ja!✓;\n: ja!")
    plain = run(
        "generate", model, *GREEDY, "--user", "Hi", "--system", " ", "--max-tokens", "1", "--json"
    )
    assert plain.facts["prompt"] == "User: Hi\n\nAssistant:"


def test_an_answer_ends_where_the_next_turn_starts(folder: Path, run) -> None:
    vocabulary = (folder / "bytes.txt").read_text() + "257 '\\n\\nU' 3\n"
    (folder / "turns.txt").write_text(vocabulary)
    write_model(folder / "chat.pth", *ids(": ja"), 257, *ids("ser"))
    words = ["generate", "chat.pth", "--vocab", "turns.txt", "--temperature", "0"]
    spoken = run(*words, "--prompt", "User: Hi\n\nAssistant:", "--max-tokens", "11", "--json")
    assert spoken.facts["text"] == " ja\n\nUser: ja"
    assert run(*words, "--user", "Hi", "--json").facts["text"] == " ja"


def test_stop_ends_the_text_before_the_first(model: str, run) -> None:
    words = ["generate", model, *GREEDY, "--prompt", ":"]
    assert run(*words, "--stop", "\n", "--stop", "✓;", "--json").facts["text"] == " ja!"
    assert run(*words, "--stop", "!").out == ": ja\n"
    cut = run(*words, "--max-tokens", "6", "--stop", "✓;", "--json")
    assert cut.facts["text"] == " ja!�"  # two bytes of the three of ✓


@pytest.mark.parametrize("content", ["a:", "a:\n", "a:\r\n"])
def test_a_prompt_from_a_file_and_from_stdin(
    model: str, run, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    Path("prompt.txt").write_bytes(content.encode())
    few = ["--max-tokens", "3", "--json"]
    assert run("generate", model, *GREEDY, *few, "--prompt-file", "prompt.txt").facts == {
        "prompt": "a:",
        "text": " ja",
    }
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert run("generate", model, *GREEDY, *few, "--prompt", "-").facts["prompt"] == "a:"


def test_a_pipe_in_and_a_pipe_out(model: str, start) -> None:
    words = ["--prompt", "-", "--max-tokens", "3", "--device", "cpu", "--precision", "bf16"]
    process = start("generate", model, *GREEDY, *words, stdin=-1)
    out, err = process.communicate("é:\n", timeout=120)
    assert (process.returncode, out) == (0, "é: ja\n")
    assert "device cpu" in err
    assert "precision bf16: as asked" in err


def test_a_backslash_that_the_shell_left(model: str, run) -> None:
    words = ["generate", model, *GREEDY, "--max-tokens", "1"]
    noted = run(*words, "--prompt", r"User: Hi\n\nAssistant:", "--stop", r"\n")
    assert noted.code == 0
    assert "--prompt holds a backslash and an n" in noted.err
    assert "--stop holds a backslash and an n" in noted.err
    assert "backslash" not in run(*words, "--prompt", "User: Hi\n\nAssistant:").err
    assert "backslash" not in run(*words, "--user", r"What is \n?").err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "there is no prompt"),
        (["--prompt", ""], 2, "--prompt: the prompt is empty"),
        (["--prompt-file", "empty.txt"], 2, "--prompt-file: the prompt is empty"),
        (["--prompt", "x", "--user", "x"], 2, "--prompt and --user exclude each other"),
        (["--prompt", "x", "--system", "x"], 2, "--system belongs to --user"),
        (["--user", " \n"], 2, "user: the text of the user is empty"),
        (["--prompt", "x", "--stop", ""], 2, "--stop: the text is empty"),
        (["--prompt-file", "bad.txt"], 4, "bad.txt: not UTF-8: byte 1 is 0xff"),
        (["--prompt-file", "absent.txt"], 4, "absent.txt: cannot be read: No such file"),
        (["--prompt", "x", "--device", "cuda"], 5, "--device: device is cuda, but torch sees no"),
    ],
)
def test_mistakes(
    model: str, run, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("bad.txt").write_bytes(b"a\xff")
    Path("empty.txt").write_bytes(b"\n")
    outcome = run("generate", model, *GREEDY, *words)
    assert outcome.code == code
    assert message in outcome.err
    assert "hint:" in outcome.err
    assert not outcome.out
