"""The folder beside the output in which a build happens.

The folder outlives a build that is stopped, so that the same command can go on from there. It is
tied to what is built by a fingerprint, and locked while processes work in it: by one alone, or by
several that share it.
"""

import contextlib
import fcntl
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from rwkvkit.errors import DataError, SetupError, UnreachableError

_FINGERPRINT = "fingerprint"
_LOCK = "lock"
_PATIENCE = 30.0  # seconds for another process to set up the folder


@contextlib.contextmanager
def workspace(prefix: Path, fingerprint: str) -> Iterator[Path]:
    """Yield the folder of a build, for this process alone.

    What an earlier build of the same fingerprint left is still in it; what one of another left is
    removed. Afterwards the folder is removed if the body succeeded or found the data wrong; after
    any other failure, such as an input out of reach, it stays, unless no part is in it. Folders
    above ``prefix`` are created, and removed again if nothing came into them.

    Raises:
        SetupError: another build of the same output is running.
        OSError: the folder cannot be created.
    """
    folder = folder_of(prefix)
    created = _create(prefix.parent)
    keep = False
    try:
        lock = _open_alone(folder, prefix, fingerprint)
        try:
            yield folder
        except BaseException as error:
            wrong = isinstance(error, DataError) and not isinstance(error, UnreachableError)
            keep = not wrong and any(folder.glob("part-*.json"))
            raise
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def shared_workspace(prefix: Path, fingerprint: str) -> Iterator[Path]:
    """Yield the folder of a build for several processes at once; it stays, whatever happens.

    Raises:
        SetupError: a build that wants the folder for itself is running, or one of another recipe.
        OSError: the folder cannot be created.
    """
    folder = folder_of(prefix)
    _create(prefix.parent)
    lock = _open_shared(folder, prefix, fingerprint)
    try:
        yield folder
    finally:
        os.close(lock)


def folder_of(prefix: Path) -> Path:
    """Return the folder in which the output ``prefix`` is built."""
    return prefix.with_name(f".{prefix.name}.build")


def _create(folder: Path) -> list[Path]:
    """Create a folder with those above it; return the new ones, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _open_alone(folder: Path, prefix: Path, fingerprint: str) -> int:
    lock = _locked(folder, fcntl.LOCK_EX)
    if lock is None:
        raise _busy(folder, prefix)
    try:
        _set_up(folder, fingerprint)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _open_shared(folder: Path, prefix: Path, fingerprint: str) -> int:
    """Share the folder, and set it up first if it is not of this fingerprint."""
    end = time.monotonic() + _PATIENCE
    while True:
        lock = _locked(folder, fcntl.LOCK_SH)
        if lock is not None:
            if _fingerprint(folder) == fingerprint:
                return lock
            os.close(lock)
            lock = _locked(folder, fcntl.LOCK_EX)
            if lock is not None:
                try:
                    _set_up(folder, fingerprint)
                finally:
                    os.close(lock)
                continue
        if time.monotonic() > end:
            raise _busy(folder, prefix)
        time.sleep(random.uniform(0.01, 0.2))  # others may be trying the same


def _locked(folder: Path, kind: int) -> int | None:
    """Lock a folder for as long as the returned descriptor is open; None if others hold it.

    The lock is on a file, since not every network file system locks folders.
    """
    while True:
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                # Another build may have removed the folder in between, this file with it.
                if os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat()):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _set_up(folder: Path, fingerprint: str) -> None:
    """Empty the folder if it is of another fingerprint, and of what a killed build was writing."""
    known = _fingerprint(folder) == fingerprint
    if not known:
        (folder / _FINGERPRINT).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in (_LOCK, _FINGERPRINT) or (known and path.name.startswith("part-")):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / _FINGERPRINT).write_text(fingerprint, encoding="ascii")


def _fingerprint(folder: Path) -> str | None:
    try:
        return (folder / _FINGERPRINT).read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _busy(folder: Path, prefix: Path) -> SetupError:
    return SetupError(
        "another build of this output is running",
        where=str(prefix),
        hint=f"wait for it to end; it works in {folder}",
    )
