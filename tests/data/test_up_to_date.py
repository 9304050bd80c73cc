import os
import time
from pathlib import Path

import pytest

from rwkvkit.data.chunks import hash_file
from rwkvkit.data.manifest import read_manifest
from rwkvkit.data.seen import seen_path
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


def twins(*paths: Path) -> None:
    """Write files of one size and time of change, each with another content."""
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(f'{{"text": "text {number}"}}\n' * 9)
        os.utime(path, (10**9, 10**9))
    time.sleep(0.02)  # so that their times are before the build


def test_another_file_by_the_same_path_is_found(build, tmp_path):
    """Nothing of the file itself changes when a folder above it gets another name."""
    twins(tmp_path / "in" / "a.jsonl", tmp_path / "mended" / "a.jsonl")
    made = build(f"{tmp_path}/in/a.jsonl")
    made.run()
    assert made.status().up_to_date
    (tmp_path / "in").rename(tmp_path / "kept")
    (tmp_path / "mended").rename(tmp_path / "in")
    assert reason(made) == f"input {tmp_path}/in/a.jsonl changed"


def test_a_link_that_leads_elsewhere_is_found(build, tmp_path):
    twins(tmp_path / "1" / "a.jsonl", tmp_path / "2" / "a.jsonl")
    link = tmp_path / "in"
    link.symlink_to("1")
    made = build(f"{link}/a.jsonl")
    made.run()
    link.unlink()
    link.symlink_to("2")
    assert reason(made) == f"input {link}/a.jsonl changed"


def test_another_working_folder_is_found(build, tmp_path, monkeypatch):
    twins(tmp_path / "1" / "a.jsonl", tmp_path / "2" / "a.jsonl")
    monkeypatch.chdir(tmp_path / "1")
    build("a.jsonl").run()
    assert build("a.jsonl").status().up_to_date
    monkeypatch.chdir(tmp_path / "2")
    assert reason(build("a.jsonl")) == "input a.jsonl changed"


def test_an_input_is_hashed_once_where_its_state_is_not_known(build, source, tmp_path, monkeypatch):
    """The output was made elsewhere, by an earlier version, or from a copy."""
    os.utime(source, (10**9, 10**9))
    build(source).run()
    hashed = []

    def counted(file):
        hashed.append(file.name)
        return hash_file(file)

    monkeypatch.setattr("rwkvkit.data.manifest.hash_file", counted)
    monkeypatch.setattr("rwkvkit.data.manifest._TICK_NS", 0)
    seen = seen_path(tmp_path / "out" / "data")
    for damage in (Path.unlink, lambda path: path.write_text("{")):
        damage(seen)
        time.sleep(0.02)
        assert build(source).status().up_to_date
        assert not seen.is_file() or seen.read_text() == "{"  # it was only asked
        assert build(source).status(keep=True).up_to_date
        assert hashed == [source] * 2
        assert build(source).status().up_to_date
        assert hashed == [source] * 2
        hashed.clear()


def test_an_output_that_cannot_be_written_beside_is_up_to_date(build, source, tmp_path):
    build(source).run()
    seen = seen_path(tmp_path / "out" / "data")
    seen.unlink()
    seen.mkdir()
    assert build(source).status(keep=True).up_to_date
    build(source).run()
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
    manifest.mkdir()  # as little to be read as what one has no permission for
    with pytest.raises(DataError, match="the manifest cannot be read: Is a dir") as caught:
        read_manifest(tmp_path / "out" / "data")
    assert caught.value.hint == "check its permissions"
    manifest.rmdir()
    assert reason(made) == "the output has no manifest"
    assert read_manifest(tmp_path / "out" / "data") is None
