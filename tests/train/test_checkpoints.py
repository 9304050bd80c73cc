"""Checkpoints appear whole, damage is seen, old ones go."""

from pathlib import Path

import pytest

from rwkvkit.errors import DataError, SetupError
from rwkvkit.train.checkpoints import CheckpointStore


def writer(content: bytes):
    def write(folder: Path) -> None:
        (folder / "model.pth").write_bytes(content)
        (folder / "optimizer.pt").write_bytes(content * 2)

    return write


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30, 40):
        store.save(step, writer(b"weights of %d" % step))
    return store


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_the_newest_stay(store: CheckpointStore) -> None:
    assert names(store) == ["step-00000020", "step-00000030", "step-00000040"]
    newest = store.newest(pytest.fail)
    assert newest is not None
    assert newest.step == 40
    assert (newest.folder / "model.pth").read_bytes() == b"weights of 40"


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(40, writer(b"again"))
    assert names(store) == ["step-00000020", "step-00000030", "step-00000040"]
    assert (store.folder / "step-00000040/model.pth").read_bytes() == b"again"


def test_the_newest_that_was_due_stays_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, keep_due=True)
    for step, due in ((10, True), (20, True), (23, False), (25, False)):
        store.save(step, writer(b"x"), due=due)
    assert names(store) == ["step-00000020", "step-00000025"]
    assert [store.newest(pytest.fail, due=due).step for due in (False, True)] == [25, 20]
    (tmp_path / "step-00000020/checkpoint.json").write_text("{")
    assert store.newest(lambda line: None, due=True) is None
    store.save(30, writer(b"x"))
    assert names(store) == ["step-00000030"]
    record = tmp_path / "step-00000030/checkpoint.json"
    record.write_text(record.read_text().replace('"due": true,', ""))  # as earlier versions wrote
    assert store.newest(pytest.fail, due=True).step == 30


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: truncate(folder / "model.pth"), "has 12 bytes instead of 13"),
        (lambda folder: flip(folder / "optimizer.pt"), "content of optimizer.pt has changed"),
        (lambda folder: (folder / "model.pth").unlink(), "No such file"),
        (lambda folder: truncate(folder / "checkpoint.json"), None),
        (lambda folder: (folder / "checkpoint.json").write_text("{}"), "checkpoint.json"),
        (lambda folder: (folder / "checkpoint.json").write_text("no json"), "checkpoint.json"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "checkpoint.json"),
        (
            lambda folder: (folder / "checkpoint.json").write_text('{"step": 40, "files": {}}'),
            "another checkpoint",
        ),
    ],
)
def test_damage_is_passed_over(store: CheckpointStore, harm, said: str | None) -> None:
    harm(store.folder / "step-00000040")
    lines: list[str] = []
    newest = store.newest(lines.append)
    assert newest is not None
    if said is None:  # the record lost its last line end, nothing more
        assert newest.step == 40
        return
    assert newest.step == 30
    assert len(lines) == 1
    assert "step-00000040 is damaged" in lines[0]
    assert said in lines[0]


def test_a_damaged_newer_one_never_pushes_out_a_good_one(store: CheckpointStore) -> None:
    truncate(store.folder / "step-00000040/model.pth")
    resumed = CheckpointStore(store.folder, keep=1)
    resumed.save(35, writer(b"good"))
    newest = resumed.newest(lambda line: None)
    assert newest is not None
    assert newest.step == 35


def test_all_damaged(store: CheckpointStore) -> None:
    for folder in store.folder.iterdir():
        truncate(folder / "model.pth")
    with pytest.raises(DataError, match="every checkpoint") as caught:
        store.newest(lambda line: None)
    assert "move the folder away" in str(caught.value.hint)


def test_none_yet(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", keep=1).newest(pytest.fail) is None


def test_a_failed_save_leaves_the_others(store: CheckpointStore) -> None:
    def write(folder: Path) -> None:
        (folder / "model.pth").write_bytes(b"part")
        raise OSError(28, "No space left on device")

    with pytest.raises(SetupError, match="No space left") as caught:
        store.save(50, write)
    assert "resumes from the last checkpoint" in str(caught.value.hint)
    assert names(store) == ["step-00000020", "step-00000030", "step-00000040"]
