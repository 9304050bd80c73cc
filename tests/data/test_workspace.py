import subprocess
import sys
from pathlib import Path

import pytest

from rwkvkit.data.workspace import publish, workspace
from rwkvkit.errors import SetupError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_beside_the_output_and_gone_afterwards(tmp_path):
    with workspace(tmp_path / "data") as folder:
        assert folder.parent == tmp_path
        (folder / "file").write_text("x")
    assert names(tmp_path) == []


def fail(prefix: Path, error: BaseException) -> None:
    with workspace(prefix) as folder:
        (folder / "file").write_text("x")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), SystemExit(1)])
def test_nothing_is_left_by_a_failure_new_folders_included(tmp_path, error):
    with pytest.raises(type(error)):
        fail(tmp_path / "a" / "b" / "data", error)
    assert names(tmp_path) == []


def test_folders_that_were_there_stay(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="x"):
        fail(tmp_path / "a" / "b" / "data", ValueError("x"))
    assert names(tmp_path) == ["a"]


def test_what_a_dead_process_left_is_removed_and_nothing_else(tmp_path):
    stale = tmp_path / ".data.build-old"
    stale.mkdir()
    (stale / "spool-0").write_text("x")
    (tmp_path / ".other.build-old").mkdir()
    (tmp_path / "data.build-mine").mkdir()
    with workspace(tmp_path / "data"):
        assert not stale.exists()
    assert names(tmp_path) == [".other.build-old", "data.build-mine"]


def test_glob_characters_in_the_name(tmp_path):
    (tmp_path / ".d[1].build-old").mkdir()
    (tmp_path / ".d1.build-old").mkdir()
    with workspace(tmp_path / "d[1]"):
        pass
    assert names(tmp_path) == [".d1.build-old"]


def test_two_builds_of_one_output_do_not_meet(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rwkvkit.data.workspace import workspace\n"
        "with workspace(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"in\n"
        (theirs,) = names(tmp_path)
        with pytest.raises(SetupError, match="another build") as caught:
            fail(tmp_path / "data", AssertionError())
        assert theirs in caught.value.hint
        assert names(tmp_path) == [theirs]
        other.kill()
    with workspace(tmp_path / "data") as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_publishing_replaces_and_removes(tmp_path):
    for suffix in (".bin", ".rejects", ".manifest"):
        (tmp_path / f"data{suffix}").write_text("old")
    with workspace(tmp_path / "data") as folder:
        (folder / "data.bin").write_text("new")
        (folder / "data.manifest").write_text("new")
        publish(folder, tmp_path / "data", (".bin", ".rejects", ".manifest"))
    assert names(tmp_path) == ["data.bin", "data.manifest"]
    assert (tmp_path / "data.bin").read_text() == "new"


def test_a_kill_while_publishing_leaves_no_manifest(tmp_path, monkeypatch):
    for suffix in (".bin", ".idx", ".manifest"):
        (tmp_path / f"data{suffix}").write_text("old")
    moved = []
    replace = Path.replace

    def stop_at_the_second(self, target):
        moved.append(self.name)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    with workspace(tmp_path / "data") as folder:
        for suffix in (".bin", ".idx", ".manifest"):
            (folder / f"data{suffix}").write_text("new")
        monkeypatch.setattr(Path, "replace", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            publish(folder, tmp_path / "data", (".bin", ".idx", ".manifest"))
        monkeypatch.undo()
    assert names(tmp_path) == ["data.bin", "data.idx"]
