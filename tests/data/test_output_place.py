"""Where an output goes: what it replaces there, and what it leaves alone."""

import json
from pathlib import Path

import pytest

from rwkvkit.data.build import Build
from rwkvkit.data.stages import Encode, Read, Split, WriteBinidx
from rwkvkit.errors import RecipeError


def make(read, prefix: Path, *, validation: float | None = None) -> Build:
    chain = [
        Read.model_validate(Read.expand(read)),
        Encode(),
        *([Split(validation=validation)] if validation else []),
        WriteBinidx(prefix=str(prefix)),
    ]
    return Build(chain, seed=1, ctx_len=16)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.fixture
def source(jsonl) -> str:
    return jsonl("a.jsonl", [f"document {i}" for i in range(50)])


def test_a_dataset_named_like_a_part_stays(source, tmp_path):
    out = tmp_path / "out"
    make(source, out / "data-val").run()
    other = contents(out)
    make(source, out / "data").run()
    assert other.items() <= contents(out).items()


def test_no_part_replaces_a_dataset(source, tmp_path):
    out = tmp_path / "out"
    make(source, out / "data-val").run()
    before = contents(out)
    made = make(source, out / "data", validation=0.2)
    for start in (made.run, made.describe):
        with pytest.raises(RecipeError, match="dataset of its own") as caught:
            start()
        assert caught.value.where == f"{out}/data-val"
        assert "another prefix" in caught.value.hint
    assert contents(out) == before


def test_no_dataset_replaces_a_part(source, tmp_path):
    out = tmp_path / "out"
    make(source, out / "data", validation=0.2).run()
    before = contents(out)
    with pytest.raises(RecipeError, match=f"validation of the dataset {out}/data") as caught:
        make(source, out / "data-val").run()
    assert "another prefix" in caught.value.hint
    assert contents(out) == before


def test_what_was_not_built_again_goes(tmp_path, source):
    """Part, mask and rejected lines of the output that was there."""
    chat = tmp_path / "chat.jsonl"
    turns = [[{"role": "assistant", "content": f"answer {i}"}] for i in range(50)]
    chat.write_text("".join(json.dumps({"m": turn}) + "\n" for turn in turns) + "bad\n")
    out = tmp_path / "out"
    read = {"path": str(chat), "chat": "m", "on_error": "skip"}
    make(read, out / "data", validation=0.2).run()
    assert {"data.mask", "data-val.mask", "data.rejects.jsonl"} <= contents(out).keys()
    make(source, out / "data").run()
    assert sorted(contents(out)) == ["data.bin", "data.idx", "data.manifest.json"]


def test_what_no_manifest_names_stays_unless_it_is_a_mask(tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("data.mask", "data-val.bin", "data.rejects.jsonl"):
        (out / name).write_bytes(b"old")
    make(source, out / "data").run()
    assert sorted(contents(out)) == [
        "data-val.bin",
        "data.bin",
        "data.idx",
        "data.manifest.json",
        "data.rejects.jsonl",
    ]


@pytest.mark.parametrize("at", range(1, 7))
def test_a_kill_while_publishing_leaves_no_mixture_that_looks_whole(
    tmp_path, source, jsonl, monkeypatch, at
):
    """And the same build after it leaves nothing of the old output."""
    out = tmp_path / "out"
    old = make(source, out / "data", validation=0.2)
    old.run()
    before = contents(out)
    new = make(jsonl("b.jsonl", ["other"] * 60), out / "data")
    steps = []
    replace, unlink = Path.replace, Path.unlink

    def step(changed: Path) -> None:
        if changed.parent == out:
            steps.append(changed.name)
            if len(steps) == at:
                raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", lambda self, to: (step(to), replace(self, to))[1])
    monkeypatch.setattr(Path, "unlink", lambda self, **some: (step(self), unlink(self, **some)))
    with pytest.raises(KeyboardInterrupt):
        new.run()
    monkeypatch.undo()
    assert old.status().up_to_date == (contents(out) == before)
    assert not new.status().up_to_date
    new.run()
    assert sorted(contents(out)) == ["data.bin", "data.idx", "data.manifest.json"]
