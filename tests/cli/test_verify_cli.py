"""`rwkvkit verify` finds what is wrong, and `prepare` leaves a card."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

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
    record = folder / f"{DATA}.manifest.json"
    manifest = json.loads(record.read_text())
    record.write_text(json.dumps(manifest | {"documents": 7}))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert "80 documents and" in outcome.err
    assert "the manifest has 7 and" in outcome.err
    assert "hint: it was changed or damaged" in outcome.err


def forge(folder: Path, change) -> None:
    """Change tokens, and the manifest so that the hashes agree with them."""
    from rwkvkit.files import sha256

    path = folder / f"{DATA}.bin"
    tokens = np.fromfile(path, "<u2")
    change(tokens)
    tokens.tofile(path)
    record = folder / f"{DATA}.manifest.json"
    manifest = json.loads(record.read_text())
    manifest["outputs"][0]["sha256"] = sha256(path)
    record.write_text(json.dumps(manifest))


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
    record = folder / f"{DATA}.manifest.json"
    manifest = json.loads(record.read_text())
    manifest["plan"][name] = wrong(manifest["plan"][name])
    record.write_text(json.dumps(manifest))
    outcome = run("verify", DATA, "--vocab", "bytes.txt")
    assert outcome.code == 4
    assert f"{name} {manifest['plan'][name]}" in outcome.err


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
    (folder / f"{DATA}.md").unlink()
    assert "up to date" in run("prepare", "r.yaml", "--set", read).err
    assert (folder / f"{DATA}.md").read_text() == card


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
