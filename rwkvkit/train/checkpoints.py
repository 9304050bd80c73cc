"""Training checkpoints: written beside and renamed, checked when read, the newest kept."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvkit.errors import DataError, SetupError
from rwkvkit.files import fsync, read_json, sha256
from rwkvkit.train.group import Group, Solo

RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: where its files are.
        step: optimizer steps done when it was saved.
    """

    folder: Path
    step: int


class CheckpointStore:
    """The checkpoints of one run: folders ``step-00000100`` with a record of their files' hashes.

    A folder appears under its name only when everything in it is on disk. Every process of a run
    calls its methods together, on a folder that all of them see; rank 0 makes, renames and removes.

    Args:
        folder: where they are.
        keep: how many of the newest stay.
        keep_due: whether the newest that was due stays too.
        group: the processes of the run; this one alone unless given.
    """

    def __init__(
        self, folder: Path, *, keep: int, keep_due: bool = False, group: Group | None = None
    ) -> None:
        self.folder = folder
        self._keep, self._keep_due = keep, keep_due
        self._group = group or Solo()

    def save(self, step: int, write: Callable[[Path], None], *, due: bool = True) -> Checkpoint:
        """Save a checkpoint and remove the oldest beyond the newest ``keep``.

        Args:
            step: optimizer steps done.
            write: writes the files of the state into the folder it is given.
            due: whether every run saves here, not only one that a signal has stopped.

        Raises:
            SetupError: the disk is full or not writable; older checkpoints are untouched.
            FailedElsewhere: another process could not write.
        """
        final = self.folder / f"step-{step:08d}"
        beside = self.folder / f".{final.name}.tmp"
        lead = self._group.rank == 0
        try:
            with self._failures_of(step, final):
                if lead:
                    shutil.rmtree(beside, ignore_errors=True)
                    beside.mkdir(parents=True)
            with self._failures_of(step, final):
                write(beside)
            hashes: dict[str, Any] = {}
            with self._failures_of(step, final):
                files = sorted(path for path in beside.rglob("*") if path.is_file())
                for path in files[self._group.rank :: self._group.world]:
                    fsync(path)
                    facts = {"size": path.stat().st_size, "sha256": sha256(path)}
                    hashes[path.relative_to(beside).as_posix()] = facts
            every = {
                name: facts for part in self._group.gather(hashes) for name, facts in part.items()
            }
            with self._failures_of(step, final):
                if lead:
                    self._finish(step, beside, final, dict(sorted(every.items())), due)
        finally:
            if lead:
                shutil.rmtree(beside, ignore_errors=True)
        return Checkpoint(final, step)

    @contextmanager
    def _failures_of(self, step: int, final: Path) -> Iterator[None]:
        """Make a failure of one process that of all, and say what could not be saved."""
        with self._group.together():
            try:
                yield
            except (OSError, SetupError) as error:
                reason = error.what if isinstance(error, SetupError) else error.strerror or error
                raise SetupError(
                    f"the checkpoint of step {step} could not be saved: {reason}",
                    where=str(final),
                    hint="make room or check permissions, then run the same command: it resumes "
                    "from the last checkpoint that was saved",
                ) from error

    def _finish(
        self, step: int, beside: Path, final: Path, hashes: dict[str, Any], due: bool
    ) -> None:
        """Write the record, give the folder its name, and remove what is too old."""
        record = {"step": step, "due": due, "files": hashes}
        (beside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        fsync(beside / RECORD)
        if final.exists():
            shutil.rmtree(final)
        beside.rename(final)
        fsync(self.folder)
        # A newer folder is a damaged one that this run has passed over: it counts for nothing.
        present = [checkpoint for checkpoint in self._all() if checkpoint.step <= step]
        old = present[: -self._keep]
        if self._keep_due and not any(map(_was_due, present[-self._keep :])):
            last = next(filter(_was_due, reversed(old)), None)
            old = [checkpoint for checkpoint in old if checkpoint != last]
        for checkpoint in old:
            shutil.rmtree(checkpoint.folder)

    def newest(self, report: Callable[[str], None], *, due: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; report each damaged one that is passed over.

        Args:
            report: takes a line about each damaged one.
            due: pass over those that were not due when they were saved.

        Raises:
            DataError: there are checkpoints, but every one is damaged.
        """
        choice: Checkpoint | None = None
        with self._group.together():
            if self._group.rank == 0:
                choice = self._newest(report, due)
        return self._group.gather(choice)[0]

    def _newest(self, report: Callable[[str], None], due: bool) -> Checkpoint | None:
        found = self._all()
        whole = not found
        for checkpoint in reversed(found):
            if damage := _damage(checkpoint):
                report(
                    f"{checkpoint.folder} is damaged ({damage}): trying the checkpoint before it"
                )
                continue
            whole = True
            if not due or _was_due(checkpoint):
                return checkpoint
        if not whole:
            raise DataError(
                "every checkpoint of this run is damaged",
                where=str(self.folder),
                hint="move the folder away to start the run again",
            )
        return None

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        if self._group.rank == 0:
            for left in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(left)

    def _all(self) -> list[Checkpoint]:
        folders = sorted(self.folder.glob("step-" + "[0-9]" * 8))
        return [Checkpoint(path, int(path.name.removeprefix("step-"))) for path in folders]


def _was_due(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint was due when it was saved; one without a word about it was."""
    try:
        return bool(read_json(checkpoint.folder / RECORD).get("due", True))
    except DataError:  # damaged
        return False


def _damage(checkpoint: Checkpoint) -> str | None:
    """Say what is wrong with a checkpoint's files, or None."""
    try:
        record = read_json(checkpoint.folder / RECORD)
        if record["step"] != checkpoint.step or not record["files"]:
            return f"{RECORD} belongs to another checkpoint"
        for name, facts in record["files"].items():
            path = checkpoint.folder / name
            if path.stat().st_size != facts["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {facts['size']}"
            if sha256(path) != facts["sha256"]:
                return f"the content of {name} has changed"
    except DataError as error:
        return f"{RECORD} {error.what}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (KeyError, TypeError, AttributeError):
        return f"{RECORD} is not a checkpoint's record"
    return None
