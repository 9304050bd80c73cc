import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from rwkvkit.data.workspace import shared_workspace, workspace
from rwkvkit.errors import DataError, SetupError, UnreachableError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_beside_the_output_and_gone_afterwards(tmp_path):
    with workspace(tmp_path / "data", "f") as folder:
        assert folder == tmp_path / ".data.build"
        (folder / "file").write_text("x")
    assert names(tmp_path) == []


def stop(prefix: Path, error: BaseException, *, part: bool, fingerprint: str = "f") -> None:
    with workspace(prefix, fingerprint) as folder:
        (folder / "new-1").write_text("half")
        if part:
            (folder / "part-000000.tokens").write_text("x")
            (folder / "part-000000.json").write_text("x")
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError(), SetupError("full"), UnreachableError("timed out")]
)
def test_parts_outlive_a_stop_and_nothing_else_does(tmp_path, error):
    with pytest.raises(type(error)):
        stop(tmp_path / "data", error, part=True)
    with workspace(tmp_path / "data", "f") as folder:
        kept = names(folder)
    assert kept == ["fingerprint", "lock", "part-000000.json", "part-000000.tokens"]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "part"), [(KeyboardInterrupt(), False), (DataError("bad"), True)]
)
def test_nothing_is_left_without_parts_or_with_bad_data(tmp_path, error, part):
    with pytest.raises(type(error)):
        stop(tmp_path / "a" / "b" / "data", error, part=part)
    assert names(tmp_path) == []


def test_folders_that_were_there_stay(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError):
        stop(tmp_path / "a" / "b" / "data", DataError("x"), part=True)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("enter", [workspace, shared_workspace])
def test_what_a_build_of_something_else_left_is_removed(tmp_path, enter):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "data", KeyboardInterrupt(), part=True, fingerprint="other")
    (tmp_path / ".data.build" / "pass").mkdir()
    with enter(tmp_path / "data", "f") as folder:
        assert names(folder) == ["fingerprint", "lock"]


HOLD = """
import sys
from pathlib import Path
from rwkvkit.data import workspace
with getattr(workspace, sys.argv[2])(Path(sys.argv[1]), "f"):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(prefix: Path, kind: str):
    """Another process in the folder; killed afterwards."""
    command = [sys.executable, "-c", HOLD, str(prefix), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        yield
        other.kill()


def test_two_builds_of_one_output_do_not_meet(tmp_path):
    with held(tmp_path / "data", "workspace"):
        with pytest.raises(SetupError, match="another build") as caught:
            stop(tmp_path / "data", AssertionError(), part=False)
        assert ".data.build" in caught.value.hint
        assert names(tmp_path) == [".data.build"]
    with workspace(tmp_path / "data", "f"):
        pass
    assert names(tmp_path) == []


def test_several_may_share_it_but_not_with_a_build_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("rwkvkit.data.workspace._PATIENCE", 0.0)
    with held(tmp_path / "data", "shared_workspace"):
        with shared_workspace(tmp_path / "data", "f") as folder:
            (folder / "part-000000.json").write_text("x")
        with pytest.raises(SetupError, match="another build"):
            stop(tmp_path / "data", AssertionError(), part=False)
        with (
            pytest.raises(SetupError, match="another build"),
            shared_workspace(tmp_path / "data", "g"),
        ):
            pass
    with workspace(tmp_path / "data", "f") as folder:
        assert "part-000000.json" in names(folder)
