"""Write files so that a reader sees the old content or the new, never a part."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rwkvkit.errors import DataError, SetupError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place if the body succeeds.

    The content is flushed to disk before the rename, and removed if the body fails. The parent
    folder is created.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            fsync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the body name ``path`` where it names no file or one that stands in for it.

    What fails when an open file is written has no name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(f".{path.name}."):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a folder or file; yields whether it was free. It ends with its process.

    Raises:
        OSError: the path does not exist, or cannot be read or locked.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which need not be there yet.

    Raises:
        SetupError: they cannot.
    """
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    raise SetupError(
        f"{there} cannot be written to" if there.is_dir() else f"{there} is a file, not a folder",
        where=str(folder),
        hint="give another folder, or fix that one",
    )


def cache_folder() -> Path | None:
    """Return the user's folder for what can be made again, ``~/.cache/rwkvkit``; None: no home.

    ``XDG_CACHE_HOME`` moves it, as the XDG specification says. It may not exist.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):
        return (Path(base) if base else Path.home() / ".cache") / "rwkvkit"
    return None


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Write a JSON object that people can read, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DataError(
            f"cannot be read: {error}", where=str(path), hint="the file is damaged: move it away"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            "holds no JSON object", where=str(path), hint="the file is damaged: move it away"
        )
    return content


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that may be whole, but that the system does not let be read."""
    return DataError(
        f"cannot be read: {error.strerror or error}",
        where=str(path),
        hint="check its permissions",
    )


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file, one a line; none if there is no file.

    A line that a kill cut short, or that is no object, is left out.
    """
    if not path.exists():
        return []
    found = []
    # Not splitlines(): a string may hold characters at which that splits, such as U+2028.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def remove_temporaries(path: Path) -> None:
    """Remove what a killed process left of its attempts to replace ``path``, a file or a folder."""
    name = glob.escape(path.name)
    for left in [*path.parent.glob(f".{name}.*.tmp"), *path.parent.glob(f".{name}.tmp")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of a file, or of each file of a folder, by the path from its parent."""
    found = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file())
    return {file.relative_to(path.parent).as_posix(): sha256(file) for file in found}


def are_whole(folder: Path, expected: dict[str, str]) -> bool:
    """Say whether files of a folder are there, with the SHA-256 that :func:`hashes` gave."""
    return all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in expected.items()
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
