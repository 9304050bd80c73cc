import os
import time
from pathlib import Path

import pytest

from rwkvkit.data.manifest import read_manifest
from rwkvkit.data.stages import Encode
from rwkvkit.errors import DataError


@pytest.fixture
def source(jsonl):
    return jsonl("a.jsonl", [f"document {i}" for i in range(40)])


def reason(build) -> str:
    status = build.status()
    assert not status.up_to_date
    return status.reason


def test_it_is_after_a_build_whatever_the_number_of_workers(build, source):
    made = build(source, repeat={}, plan=True)
    assert reason(made) == "there is no output yet"
    made.run(workers=2)
    assert build(source, repeat={}, plan=True).status().up_to_date


def test_what_changed_in_the_recipe_is_said(build, source, jsonl, tmp_path):
    other = jsonl("b.jsonl", ["b"])
    build(source, repeat={"epochs": 3}, plan=True).run()

    def why(read=source, **changes):
        settings = {"repeat": {"epochs": 3}, "plan": True, **changes}
        return reason(build(read, **settings))

    assert why(repeat={"epochs": 4}) == "epochs 3 -> 4"
    assert why(repeat={"epochs": 3, "shuffle": False}) == "shuffle True -> False"
    assert why(seed=43) == "seed 42 -> 43"
    assert why(repeat={"epochs": 3, "seed": 7}) == "seed 42 -> 7"
    assert why(ctx_len=32) == "ctx_len 16 -> 32"
    assert why({"path": source, "repeat": 2}) == "sources[0].repeat 1 -> 2"
    assert why({"sources": [source], "on_error": "skip"}) == "on_error stop -> skip"
    assert why([source, other]) == "sources changed"
    assert why(other) == f"sources[0].path {source} -> {other}"
    assert why(plan=False).startswith("stages read, encode, repeat-shuffle, write-binidx, plan ->")
    same = build(source, repeat={"epochs": 3, "seed": 42}, plan=True)
    assert same.status().up_to_date


def test_settings_that_change_nothing_do_not_count(build, source):
    build(source, repeat={"shuffle": False}).run()
    assert build(source, repeat={"shuffle": False}, seed=5, ctx_len=99).status().up_to_date


def test_a_new_version_of_a_stage_or_vocabulary_builds_again(build, source, tmp_path, monkeypatch):
    build(source).run()
    monkeypatch.setattr(Encode, "version", 2)
    assert reason(build(source)) == "encode is version 2, was 1"
    monkeypatch.undo()
    vocab = tmp_path / "v.txt"
    vocab.write_text("\n".join(f"{b + 1} {bytes([b])!r} 1" for b in range(256)))
    assert reason(build(source, vocab=str(vocab))).startswith("vocabulary ")


def test_a_changed_input_is_named(build, source):
    build(source).run()
    path = Path(source)
    path.write_text(path.read_text().replace("document 1", "documenT 1"))
    assert reason(build(source)) == f"input {source} changed"
    path.write_text(path.read_text() + '{"text": "x"}\n')
    assert reason(build(source)) == f"input {source} changed"


def test_a_change_that_hides_its_time_is_found(build, source):
    build(source).run()
    path = Path(source)
    stat = path.stat()
    path.write_text(path.read_text().replace("document 1", "documenT 1"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert reason(build(source)) == f"input {source} changed"


def test_a_change_while_the_output_is_written_is_found(build, source):
    path = Path(source)

    def change(progress):
        if progress.phase == "write":
            path.write_text(path.read_text().replace("document 1", "documenT 1"))

    build(source).run(progress=change)
    assert reason(build(source)) == f"input {source} changed"


def test_the_same_content_written_again_is_no_change(build, source):
    build(source).run()
    time.sleep(0.02)
    Path(source).write_bytes(Path(source).read_bytes())
    assert build(source).status().up_to_date


def test_files_that_come_and_go_are_named(build, source, jsonl, tmp_path):
    second = jsonl("b.jsonl", ["b"])
    pattern = f"{tmp_path}/*.jsonl"
    build(pattern).run()
    third = jsonl("c.jsonl", ["c"])
    assert reason(build(pattern)) == f"input {third} is new"
    Path(third).unlink()
    Path(second).unlink()
    assert reason(build(pattern)) == f"input {second} is gone"
    Path(source).unlink()
    with pytest.raises(DataError, match="no file matches"):
        build(pattern).status()


def test_a_missing_or_cut_output_builds_again(build, source, tmp_path):
    made = build(source)
    made.run()
    index = tmp_path / "out" / "data.idx"
    content = index.read_bytes()
    index.write_bytes(content[:-1])
    assert reason(made) == f"output {index} has another size"
    index.unlink()
    assert reason(made) == f"output {index} is gone"
    made.run()
    assert made.status().up_to_date
    assert index.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"format": 99}'])
def test_a_damaged_manifest_builds_again(build, source, tmp_path, content):
    made = build(source)
    made.run()
    manifest = tmp_path / "out" / "data.manifest.json"
    manifest.write_bytes(content)
    assert "the manifest cannot be read" in reason(made)
    with pytest.raises(DataError, match="the manifest cannot be read") as caught:
        read_manifest(tmp_path / "out" / "data")
    assert caught.value.hint == "build the output again"
    manifest.unlink()
    assert reason(made) == "the output has no manifest"
    assert read_manifest(tmp_path / "out" / "data") is None
