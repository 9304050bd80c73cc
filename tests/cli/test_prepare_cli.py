"""`rwkvkit prepare` on good and bad input: message, exit code, and nothing left behind."""

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import files_in

GOOD = b'{"text": "one"}\n{"text": "two"}\n'


def test_prepare_says_what_it_made(folder: Path, run) -> None:
    outcome = run("prepare", "r.yaml")
    assert outcome.code == 0
    manifest = json.loads((folder / "out/tiny/data.manifest.json").read_text())
    plan = manifest["plan"]
    assert f"dataset out/tiny/data: 80 documents, {manifest['tokens']:,} tokens" in outcome.out
    flags = (
        f"--my_exit_tokens {manifest['tokens']} --magic_prime {plan['magic_prime']} --ctx_len 16"
    )
    assert flags in outcome.out
    assert "next: rwkvkit inspect out/tiny/data" in outcome.out
    again = run("prepare", "r.yaml", "--json")
    assert again.facts["skipped"] is True
    assert again.facts["magic_prime"] == plan["magic_prime"]


def test_a_change_is_named(folder: Path, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    outcome = run("prepare", "r.yaml", "--set", "prepare.repeat-shuffle.epochs=3")
    assert "prepare: epochs 2 -> 3: building" in outcome.err
    with (folder / "text.jsonl").open("ab") as file:
        file.write(GOOD)
    outcome = run("prepare", "r.yaml", "--set", "prepare.repeat-shuffle.epochs=3")
    assert "prepare: input text.jsonl changed: building" in outcome.err
    assert "126 documents" in outcome.out


def test_dry_run_touches_nothing(folder: Path, run) -> None:
    before = files_in(folder)
    outcome = run("prepare", "r.yaml", "--dry-run")
    assert outcome.code == 0
    assert "source text.jsonl: 1 file" in outcome.out
    assert "would build: there is no output yet" in outcome.out
    assert run("train", "r.yaml", "--dry-run", "--json").facts["steps"]["prepare"] == {
        "up_to_date": False,
        "reason": "there is no output yet",
    }
    assert "would create them: there is no" in run("init-weights", "r.yaml", "--dry-run").out
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (GOOD + b'{"text": "three"\n', "text.jsonl:3", "broken JSON"),
        (GOOD + b'{"txt": "three"}\n', "text.jsonl:3", "no field 'text'"),
        (GOOD + b'{"text": 3}\n', "text.jsonl:3", "field 'text' is a number, not a string"),
        (b'{"text": "\xff"}\n' + GOOD, "text.jsonl:1", "invalid UTF-8"),
        (b"", "text.jsonl", "no document"),
        (b"\n \n", "text.jsonl", "no document"),
        (GOOD, None, "too small"),
    ],
    ids=["json", "field", "type", "utf-8", "empty", "blank", "small"],
)
def test_bad_text(folder: Path, run, content: bytes, place: str | None, message: str) -> None:
    (folder / "text.jsonl").write_bytes(content)
    before = files_in(folder)
    outcome = run("prepare", "r.yaml")
    assert outcome.code == 4
    assert message in outcome.err
    if place:
        assert f"error: {place}: " in outcome.err
    if message not in ("no document",):
        assert "hint:" in outcome.err
    assert files_in(folder) == before
    assert not (folder / "out").exists()


def test_a_bad_line_in_a_compressed_file(folder: Path, run) -> None:
    (folder / "text.jsonl.gz").write_bytes(gzip.compress(GOOD + b"{}\n"))
    outcome = run("prepare", "r.yaml", "--set", "prepare.read.path=text.jsonl.gz")
    assert outcome.code == 4
    assert "text.jsonl.gz:3: no field 'text'" in outcome.err


@pytest.mark.parametrize("content", [b'[{"text": "one"}]', b'[\n  {"text": "one"}\n]\n'])
def test_an_array_is_told_from_lines(folder: Path, run, content: bytes) -> None:
    """To skip its lines would be to lose it."""
    (folder / "alpaca.json").write_bytes(content)
    outcome = run("prepare", "r.yaml", "--set", "prepare.read.path=alpaca.json")
    assert outcome.code == 4
    assert "error: alpaca.json:1: " in outcome.err
    assert (
        "hint: it looks like one JSON array: jq -c '.[]' alpaca.json > alpaca.jsonl" in outcome.err
    )
    assert "on_error" not in outcome.err


def test_files_that_cannot_be_read(folder: Path, run) -> None:
    missing = run("prepare", "r.yaml", "--set", "prepare.read.path=absent/*.jsonl")
    assert missing.code == 4
    assert "absent/*.jsonl" in missing.err
    assert str(folder) in missing.err
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    unreadable = run("prepare", "r.yaml", "--set", "prepare.read.path=loop.jsonl")
    assert unreadable.code == 4
    assert "loop.jsonl" in unreadable.err
    assert not (folder / "out").exists()


def test_an_output_that_cannot_be_written(folder: Path, run) -> None:
    (folder / "file").write_text("")
    outcome = run("prepare", "r.yaml", "--set", "prepare.write-binidx=file/data")
    assert outcome.code == 5
    assert "cannot write the output" in outcome.err
    assert "hint:" in outcome.err


def test_a_good_dataset_survives_a_failed_build(folder: Path, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    before = {
        name: (folder / name).read_bytes()
        for name in files_in(folder / "out")
        if (folder / name).is_file()
    }
    kept = {name: (folder / "out" / name).read_bytes() for name in files_in(folder / "out")}
    assert kept
    (folder / "text.jsonl").write_bytes(GOOD + b"broken\n")
    assert run("prepare", "r.yaml").code == 4
    assert {name: (folder / "out" / name).read_bytes() for name in files_in(folder / "out")} == kept
    assert before == {}


def test_bad_lines_can_be_skipped(folder: Path, run) -> None:
    text = (folder / "text.jsonl").read_bytes()
    (folder / "text.jsonl").write_bytes(text + b"broken\n\n{}\n")
    read = "prepare.read={sources: text.jsonl, on_error: skip}"
    outcome = run("prepare", "r.yaml", "--set", read)
    assert outcome.code == 0
    assert "2 lines rejected" in outcome.out
    rejects = (folder / "out/tiny/data.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [41, 43]
    assert json.loads(rejects[0])["raw"] == "broken"
    (folder / "text.jsonl").write_bytes(text + b"broken\n")
    assert "1 line rejected" in run("prepare", "r.yaml", "--set", read).out


def test_interrupted_it_goes_on_where_it_stood(folder: Path, run) -> None:
    document = json.dumps({"text": "words and words " * 500}).encode() + b"\n"
    (folder / "text.jsonl").write_bytes(document * 20_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvkit", "prepare", "r.yaml", "--workers", "2"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("out/tiny/.data.build/part-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted: stopped before the end\n  hint: run the same command to continue" in err
    assert files_in(folder / "out")
    assert all(name.startswith("tiny/.data.build/") for name in files_in(folder / "out"))
    # Other input: what was kept does not count.
    (folder / "text.jsonl").write_bytes(document)
    assert run("prepare", "r.yaml").code == 0
    assert files_in(folder / "out") == [
        "tiny/.data.inputs.json",
        "tiny/data.bin",
        "tiny/data.idx",
        "tiny/data.manifest.json",
        "tiny/data.md",
        "tiny/data.png",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prepare.repeat-shuffle.epoch=3", "unknown key (did you mean 'epochs'?)"),
        ("prepare.repeat-shuffle.epochs=x", "should be a valid integer, not 'x'"),
        ("model.size=x070-1b", "unknown size 'x070-1b'"),
        ("prepare.read.path=text.log", "text.log"),
    ],
)
def test_recipe_mistakes(folder: Path, run, setting: str, message: str) -> None:
    (folder / "text.log").write_text("text")
    if setting.startswith("model"):
        outcome = run("train", "r.yaml", "--set", "model={size: x070-1b}")
    else:
        outcome = run("prepare", "r.yaml", "--set", setting)
    assert outcome.code == 3
    assert message in outcome.err
    assert "hint:" in outcome.err
    assert not (folder / "out").exists()


def test_shards_and_a_merge(folder: Path, run) -> None:
    first = run("prepare", "r.yaml", "--shard", "1/2")
    assert first.code == 0
    assert "next: when all 2 are done, rwkvkit prepare r.yaml --merge" in first.out
    missing = run("prepare", "r.yaml", "--shard", "2/2", "--json")
    assert missing.facts["parts"] == 0  # a single part is with the first
    assert run("prepare", "r.yaml", "--merge").code == 0
    assert "up to date" in run("prepare", "r.yaml", "--shard", "1/2").err
    assert run("prepare", "r.yaml", "--shard", "1/2", "--merge").code == 2
    assert run("prepare", "r.yaml", "--shard", "x").code == 2


def test_memory_is_a_size(folder: Path, run) -> None:
    assert run("prepare", "r.yaml", "--memory", "1KiB").code == 0
    outcome = run("prepare", "r.yaml", "--memory", "much")
    assert outcome.code == 2
    assert "'much' is no size such as 512MiB" in outcome.err
    outcome = run("prepare", "r.yaml", "--memory", "512")
    assert outcome.code == 2
    assert "'512' is less than 1,024 bytes: did you mean 512MiB?" in outcome.err
    outcome = run("prepare", "r.yaml", "--memory", "0.5K")
    assert outcome.code == 2
    assert "'0.5K' is less than 1,024 bytes: 2GiB, say, is more" in outcome.err


@pytest.mark.parametrize("prefix", [".", "/", "..", "out/", "out/..", "a\0b"])
def test_a_prefix_ends_in_a_name(folder: Path, run, prefix: str) -> None:
    before = files_in(folder)
    write = json.dumps(f"prepare.write-binidx={json.dumps(prefix)}")
    outcome = run("prepare", "r.yaml", "--set", json.loads(write))
    assert outcome.code == 3
    assert "ends in the name that the files are to have: out/data" in outcome.err
    assert files_in(folder) == before


def test_the_files_of_sources_and_outputs_are_told(folder: Path, run) -> None:
    """By the dry run; what is read also when it is."""
    (folder / "in").mkdir()
    (folder / "in/a.jsonl").write_bytes(GOOD)
    (folder / "in/b.txt").write_text("a text")
    (folder / "in/c.md").touch()
    chat = {"m": [{"role": "assistant", "content": "words"}]}
    (folder / "chat.jsonl").write_text((json.dumps(chat) + "\n") * 9)
    chain = (
        "prepare=[{read: {sources: [in, {path: chat.jsonl, chat: m}], on_error: skip}},"
        " {encode: {vocab: bytes.txt}}, {split: 0.3}, {write-binidx: out/data}]"
    )
    told = "source in: 2 files (1 jsonl, 1 text), "
    outcome = run("prepare", "r.yaml", "--set", chain, "--dry-run")
    assert told in outcome.out
    assert "skipped 1 of unknown suffix: c.md" in outcome.out
    [line] = [line for line in outcome.out.splitlines() if line.startswith("write-binidx: ")]
    named = line.removeprefix("write-binidx: ").replace("; for bad lines ", ", ").split(", ")
    outcome = run("prepare", "r.yaml", "--set", chain)
    assert outcome.code == 0, outcome.err
    assert told in outcome.err
    there = {name for name in files_in(folder) if name.startswith("out/data")}
    assert there == {*named} - {"out/data.rejects.jsonl"}
    assert "out/data-val.mask" in there


def test_the_fingerprint_names_what_would_be_built(folder: Path, run) -> None:
    first = run("prepare", "r.yaml", "--dry-run", "--json").facts["fingerprint"]
    assert run("prepare", "r.yaml").code == 0
    manifest = json.loads((folder / "out/tiny/data.manifest.json").read_text())
    assert manifest["fingerprint"] == first
    text = (folder / "text.jsonl").read_text()
    (folder / "text.jsonl").write_text(text.replace("number 1", "number 2"))
    assert run("prepare", "r.yaml", "--dry-run", "--json").facts["fingerprint"] != first
