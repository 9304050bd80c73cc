import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvkit import open_binidx
from rwkvkit.data.build import Build
from rwkvkit.errors import DataError, RecipeError, SetupError, UsageError

SKIP = "on_error: skip leaves such lines out"
BAD_LINES = [
    (b"{broken", "broken JSON: Expecting property name", SKIP),
    (b'{"text": "a"} {"text": "b"}', "broken JSON: Extra data at column 15", SKIP),
    (b'{"body": "x", "id": 5}', "no field 'text'", "the line has 'body', 'id'"),
    (b"{}", "no field 'text'", "the line has no fields"),
    (b'{"text": 5}', "field 'text' is a number, not a string", SKIP),
    (b'{"text": null}', "field 'text' is null, not a string", SKIP),
    (b'{"text": ["x"]}', "field 'text' is a list, not a string", SKIP),
    (b'{"text": true}', "field 'text' is a boolean, not a string", SKIP),
    (b'["text"]', "the line is a list, not an object", SKIP),
    (b'{"text": "\xe9"}', "invalid UTF-8: .* byte 0xe9 at column 11", "convert the file"),
    (b'{"text": "\\udc00"}', r"lone surrogate \(\\udc00 at character 0\)", SKIP),
    (b'\xef\xbb\xbf{"text": "x"}', "byte order mark", "save it as UTF-8 without one"),
]
GOOD = b'{"text": "a good line"}\n'


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("line", "reason", "hint"), BAD_LINES)
def test_a_bad_line_stops_with_file_line_and_hint(build, tmp_path, line, reason, hint):
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD * 7 + b"\n \n" + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=reason) as caught:
        build(str(path), chunk_bytes=60).run()
    assert caught.value.where == f"{path}:10"
    assert caught.value.exit_code == 4
    assert hint in caught.value.hint
    assert SKIP in caught.value.hint
    assert leftovers(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_bad_line_of_the_corpus_is_named(build, tmp_path, workers):
    for name, bad in (("a-2.jsonl", 300), ("a-10.jsonl", 1), ("a-11.jsonl", 2)):
        lines = [GOOD] * 400
        lines[bad] = b"bad\n"
        (tmp_path / name).write_bytes(b"".join(lines))
    (tmp_path / "a-12.jsonl.gz").write_bytes(gzip.compress(GOOD)[:-3])
    with pytest.raises(DataError) as caught:
        build(f"{tmp_path}/a-*", chunk_bytes=500).run(workers=workers)
    assert caught.value.where == f"{tmp_path}/a-2.jsonl:301"


@pytest.mark.parametrize("task_bytes", [100, 1000, 5000])
@pytest.mark.parametrize("line", [3, 250, 401])
def test_lines_of_all_tasks_of_a_file_count(build, tmp_path, line, task_bytes):
    lines = [GOOD, b'{"text": "a longer line with \\r\\n in it"}\r\n', b"\n", b'{"text": "r"}\r']
    lines = (lines * 101)[: line - 1] + [b'{"text": 1}\n'] + lines * 30
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="is a number") as caught:
        build(str(path), chunk_bytes=100, task_bytes=task_bytes).run()
    assert caught.value.where == f"{path}:{line}"
    skipping = build(
        {"sources": [str(path)], "on_error": "skip"}, chunk_bytes=100, task_bytes=task_bytes
    )
    assert skipping.run().rejected == 1
    written = (tmp_path / "out" / "data.rejects.jsonl").read_text()
    assert json.loads(written)["line"] == line


@pytest.mark.parametrize("workers", [1, 2])
def test_skipping_writes_rejects_and_counts_them(build, tmp_path, workers):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(GOOD + line + b"\n" for line, _, _ in BAD_LINES))
    (tmp_path / "in.txt").write_bytes(b"one\ntwo \xff")
    sources = [{"path": str(path)}, {"path": str(tmp_path / "in.txt"), "format": "text"}]
    read = {"sources": sources, "on_error": "skip"}
    made = build(read, chunk_bytes=100).run(workers=workers)
    assert made.rejected == len(BAD_LINES) + 1
    assert made.documents == len(BAD_LINES)
    written = (tmp_path / "out" / "data.rejects.jsonl").read_text(encoding="utf-8")
    rejects = [json.loads(line) for line in written.rstrip("\n").split("\n")]
    assert [(r["file"], r["line"]) for r in rejects] == [
        *[(str(path), 2 * i + 2) for i in range(len(BAD_LINES))],
        (str(tmp_path / "in.txt"), 2),
    ]
    for reject, (line, _, _) in zip(rejects, BAD_LINES, strict=False):
        assert reject["raw"] == line.decode(errors="replace")
    assert rejects[-1]["raw"] == "two \ufffd"

    path.write_bytes(GOOD)
    (tmp_path / "in.txt").write_bytes(b"fine")
    assert build(read).run().rejected == 0
    assert not (tmp_path / "out" / "data.rejects.jsonl").exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", "\u3000\n \n".encode()])
def test_an_empty_corpus(build, tmp_path, content):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="the input holds no document") as caught:
        build(str(path)).run()
    assert caught.value.where == str(path)
    assert leftovers(tmp_path) == ["in.jsonl"]


def test_a_corpus_of_rejects_only(build, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"bad\nworse\n")
    with pytest.raises(DataError, match="the input holds no document") as caught:
        build({"sources": [{"path": str(path)}], "on_error": "skip"}).run()
    assert caught.value.hint == "2 lines were rejected"
    assert leftovers(tmp_path) == ["in.jsonl"]


def test_a_corpus_too_small_for_ctx_len(build, jsonl, tmp_path):
    path = jsonl("in.jsonl", ["Hello world"])
    with pytest.raises(DataError, match="the corpus is too small: 3 tokens at ctx_len 4") as caught:
        build(path, ctx_len=4, plan=True).run()
    assert "12 tokens" in caught.value.hint
    assert leftovers(tmp_path) == ["in.jsonl"]
    build(path, ctx_len=4, plan=True, repeat={"epochs": 4}).run()


def test_no_input(build, tmp_path):
    made = build(str(tmp_path / "*.jsonl"))
    for call in (made.describe, made.run):
        with pytest.raises(DataError, match="no file matches"):
            call()
    assert leftovers(tmp_path) == []


def test_an_unreadable_input(build, tmp_path):
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        build(f"{tmp_path}/*.jsonl").run()
    assert leftovers(tmp_path) == ["a.jsonl"]


def test_an_input_that_goes_away_or_grows(build, jsonl, tmp_path):
    path = Path(jsonl("in.jsonl", ["x" * 50] * 1000))

    def grow(_):
        with path.open("a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(DataError, match="changed while it was read") as caught:
        build(str(path)).run(progress=grow)
    assert caught.value.where == str(path)
    assert leftovers(tmp_path) == ["in.jsonl"]
    with pytest.raises(DataError, match="cannot be read") as caught:
        build(str(path)).run(progress=lambda _: path.unlink(missing_ok=True))
    assert "that the file exists" in caught.value.hint
    # It may be within reach again.
    assert "out/.data.build/part-000000.json" in leftovers(tmp_path)


def test_a_chain_that_cannot_work():
    with pytest.raises(RecipeError, match="the chain writes nothing"):
        Build([], seed=1, ctx_len=16)


@pytest.mark.parametrize("limits", [{"workers": 0}, {"workers": -1}, {"memory": 3}])
def test_too_few_workers_and_too_little_memory(build, jsonl, tmp_path, limits):
    made = build(jsonl("in.jsonl", ["x"] * 50), repeat={})
    with pytest.raises(UsageError, match=r"1 worker at least|too little memory") as caught:
        made.run(**limits)
    assert caught.value.hint
    assert leftovers(tmp_path) == ["in.jsonl"]


def test_a_missing_vocabulary(build, jsonl, tmp_path):
    with pytest.raises(DataError, match="cannot read the vocabulary"):
        build(jsonl("in.jsonl", ["x"]), vocab=str(tmp_path / "none.txt")).run()
    assert leftovers(tmp_path) == ["in.jsonl"]


def test_an_output_folder_that_cannot_be(build, jsonl, tmp_path):
    path = jsonl("in.jsonl", ["x"])
    with pytest.raises(SetupError, match="cannot write the output") as caught:
        build(path, prefix=Path(path) / "sub" / "data").run()
    assert caught.value.where == str(Path(path) / "sub" / "data")
    assert caught.value.exit_code == 5
    assert "writable" in caught.value.hint
    assert leftovers(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("limit", [10_000, 400_000])
def test_a_full_disk(jsonl, build, tmp_path, workers, limit):
    """A limit on the size of files stands in for it: the parts, then the output, meet it."""
    path = jsonl("in.jsonl", ["some words here " * 50] * 500)
    build(path).run()
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    code = f"""
import resource, sys
from rwkvkit.data.build import Build
from rwkvkit.data.stages import *
from rwkvkit.errors import SetupError
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    read = Read.model_validate(Read.expand({path!r}))
    write = WriteBinidx(prefix={str(tmp_path / "out" / "data")!r})
    chain = [read, Encode(), RepeatShuffle(epochs=10), write]
    try:
        Build(chain, seed=1, ctx_len=16).run(workers={workers})
    except SetupError as error:
        print(error)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "cannot write the output: File too large" in done.stdout, done.stderr
    kept = [p for p in (tmp_path / "out").iterdir() if p.is_file()]
    assert {p.name: p.read_bytes() for p in kept} == before


def test_a_good_output_survives_a_failed_build(build, jsonl, tmp_path):
    path = jsonl("in.jsonl", ["x"] * 10)
    build(path).run()
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with Path(path).open("a") as file:
        file.write("bad\n")
    with pytest.raises(DataError):
        build(path).run()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert len(open_binidx(tmp_path / "out" / "data")) == 10
