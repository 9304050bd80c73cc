"""Paths on other machines, ``protocol://...``, through the package ``fsspec``."""

import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import zstandard

from rwkvkit.errors import DataError, RecipeError, RwkvkitError, SetupError, UnreachableError

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "ssh": "paramiko",
    "sftp": "paramiko",
}
_TAGS = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified")  # of ``info``, the best first
_BLOCK = 8 << 20  # bytes fetched ahead; those beyond the end of a range are for nothing
_READ = 128 << 10
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_remote(path: str) -> bool:
    """Say whether a path names a protocol."""
    return _PROTOCOL.match(path) is not None


def file_name(path: str) -> str:
    """Return the last part of a path, without the query of a web address."""
    if _is_web(path):
        path = urlsplit(path).path
    return path.rpartition("/")[2]


def find(path: str) -> list[str]:
    """Return the files that a path means now: itself, those of a glob, or all in a folder.

    Raises:
        UnreachableError: the place cannot be reached.
        SetupError: the package for its protocol is not installed.
        RecipeError: there is no such protocol.
    """
    with _reached(path):
        system, inner = _system(path)
        system.invalidate_cache()
        if any(sign in path for sign in _glob_signs(path)):
            found = system.glob(inner)
        else:
            try:
                kind = system.info(inner)["type"]
            except FileNotFoundError as error:
                if _web_failure(path, error) is not None:
                    raise
                return []
            if kind == "file":
                return [path]
            found = [name for name in system.find(inner) if "/." not in name]
        return [system.unstrip_protocol(name) for name in found if not system.isdir(name)]


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file to read and seek in.

    Raises:
        UnreachableError: it cannot be read.
        SetupError, RecipeError: as in ``find``.
    """
    with _reached(path):
        system, inner = _system(path)
        with system.open(inner, "rb", block_size=_BLOCK) as raw, BufferedReader(raw, _READ) as file:
            yield file


def forget_listings(paths: Iterable[str]) -> None:
    """Have the next question about each of these files answered by its server, not from memory.

    Raises:
        SetupError, RecipeError: as in ``find``.
    """
    for path in paths:
        with _reached(path):
            _system(path)[0].invalidate_cache()


def size_and_tag(path: str) -> tuple[int, str | None]:
    """Return the size of a file in bytes, and what its server calls its content, or None.

    Raises:
        UnreachableError: it cannot be reached.
        DataError: its size is not known there.
        SetupError, RecipeError: as in ``find``.
    """
    with _reached(path):
        system, inner = _system(path)
        info = system.info(inner)
        size = info.get("size")
        if size is None:
            raise DataError(
                "the server does not tell the size of the file",
                where=path,
                hint="fetch it and name the local file",
            )
        return int(size), next((str(info[key]) for key in _TAGS if info.get(key)), None)


def touched(path: str) -> tuple[int, str]:
    """Return the size of a file in bytes, and a word that changes when its content does.

    The word of a web server that has no tag for the file stays the same.

    Raises:
        UnreachableError, DataError, SetupError, RecipeError: as in ``size_and_tag``.
    """
    size, tag = size_and_tag(path)
    if tag is None:
        with _reached(path):
            system, inner = _system(path)
            tag = str(system.ukey(inner))
    return size, tag


def modified_ns(path: str) -> int | None:
    """Return when a file was changed last, in nanoseconds since 1970, or None if none can tell."""
    with _reached(path):
        system, inner = _system(path)
        try:
            return int(system.modified(inner).timestamp() * 1e9)
        except (NotImplementedError, AttributeError, KeyError):
            return None


def _glob_signs(path: str) -> str:
    """Return what makes a path a glob; in a web address, a question mark begins the query."""
    return "*[" if _is_web(path) else "*[?"


def _is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _web_failure(path: str, error: Exception) -> BaseException | None:
    """Return what failed where fsspec says of a web address, whatever it was, "not found"."""
    if not _is_web(path) or not isinstance(error, FileNotFoundError):
        return None
    return error.__cause__


def _system(path: str) -> tuple[Any, str]:
    import fsspec

    system, inner = fsspec.core.url_to_fs(path)
    return system, inner


@contextmanager
def _reached(path: str) -> Iterator[None]:
    protocol = path.partition("://")[0].lower()
    try:
        yield
    except (RwkvkitError, EOFError, zlib.error, zstandard.ZstdError):
        raise  # what a reader found in the content is its to explain
    except ImportError as error:
        package = _PACKAGES.get(protocol, error.name or protocol)
        raise SetupError(
            f"the package {package} is needed to read {protocol}:// paths",
            where=path,
            hint=f"pip install {package}",
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            raise RecipeError(
                f"no such protocol: {protocol}://",
                where=path,
                hint="such as s3://, gs://, https://; a local path needs none",
            ) from error
        found = _web_failure(path, error) or error
        words = " ".join(str(found).split()) or type(found).__name__
        hint = "check the address, the network, and your credentials"
        if isinstance(error, ValueError) and "range requests" in words:
            words = "the server sends files only from their beginning (it has no range requests)"
            hint = "fetch it and name the local file"
        raise UnreachableError(f"cannot be read: {words}", where=path, hint=hint) from error
