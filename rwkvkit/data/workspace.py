"""A private folder beside the output in which a build happens, and its move into place."""

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rwkvkit import files
from rwkvkit.errors import SetupError


@contextlib.contextmanager
def workspace(prefix: Path) -> Iterator[Path]:
    """Yield a new folder beside ``prefix`` and remove it at the end, whatever happens.

    The folder is locked while this process lives. One that was left by a killed process is
    unlocked, and removed here. Folders above ``prefix`` are created, and removed again if nothing
    came into them.

    Raises:
        SetupError: another build of the same output is running.
        OSError: the folder cannot be created.
    """
    created = _create(prefix.parent)
    try:
        folder, lock = _new_folder(prefix)
        try:
            _remove_stale(prefix, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


def publish(folder: Path, prefix: Path, suffixes: tuple[str, ...]) -> None:
    """Move ``folder/name + suffix`` beside ``prefix`` for every suffix that was built.

    What was not built is removed from there. The last suffix vouches for the others: its old file
    goes first and its new one comes last, so that a kill in between leaves an output that nothing
    vouches for, never a mixture that looks whole.
    """
    _beside(prefix, suffixes[-1]).unlink(missing_ok=True)
    for suffix in suffixes:
        built = _beside(folder / prefix.name, suffix)
        if built.exists():
            built.replace(_beside(prefix, suffix))
        else:
            _beside(prefix, suffix).unlink(missing_ok=True)
    files.fsync(prefix.parent)


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _stem(prefix: Path) -> str:
    return f".{prefix.name}.build-"


def _create(folder: Path) -> list[Path]:
    """Create a folder with those above it; return the new ones, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _new_folder(prefix: Path) -> tuple[Path, int]:
    """Create and lock a folder; again, if another build took it for stale in between."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_stem(prefix), dir=prefix.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = _locked(folder)
            if lock is not None:
                if folder.exists():
                    return folder, lock
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder for as long as the returned descriptor is open; None if another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_stale(prefix: Path, own: Path) -> None:
    for other in prefix.parent.glob(f"{glob.escape(_stem(prefix))}*"):
        if other == own:
            continue
        with contextlib.suppress(FileNotFoundError):
            lock = _locked(other)
            if lock is None:
                raise SetupError(
                    "another build of this output is running",
                    where=str(prefix),
                    hint=f"wait for it to end; it works in {other}",
                )
            shutil.rmtree(other, ignore_errors=True)
            os.close(lock)
