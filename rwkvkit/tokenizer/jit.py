"""Compile loops with numba."""

import contextlib
import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = ("data", "tokenizer")  # loops call those of other files there


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on its first call, without the GIL and without bounds checks.

    The machine code is kept for the next process, if any folder takes it; that for other states of
    the files is removed.
    """
    # numba names what it keeps after the function, looks only at the function's own file to see
    # whether that is outdated, and replaces it bit by bit. So a name is for one state of the files.
    path, name = Path(function.__code__.co_filename), function.__qualname__
    try:
        stamp = _stamp(path)
        function.__qualname__ += f"_{stamp}"
        made = numba.njit(nogil=True, boundscheck=False, cache=True)(function)
    except (RuntimeError, OSError):  # no writable cache folder, or no source files
        return numba.njit(nogil=True, boundscheck=False)(function)
    # A function without such figures is a plain one: NUMBA_DISABLE_JIT is set.
    if hasattr(made, "stats") and (folder := made.stats.cache_path):
        _remove_others(Path(folder), f"{path.stem}.{name}", stamp)
    return made


def _remove_others(folder: Path, name: str, stamp: str) -> None:
    """Remove what is kept of a function under other stamps.

    A process that still has one of them compiles again where it finds nothing. What it is writing
    bears another suffix and stays.
    """
    own = re.compile(re.escape(name) + r"_([0-9a-f]{12})-.*\.nb[ic]")
    for file in _kept(folder):
        found = own.fullmatch(file)
        if found and found[1] != stamp:
            with contextlib.suppress(OSError):
                (folder / file).unlink()


@cache
def _kept(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [path.name for path in folder.iterdir()]
    return []


@cache
def _stamp(path: Path) -> str:
    """Return a hash of the states of a file and of those whose loops it may call."""
    others = [other for folder in _FOLDERS for other in (_PACKAGE / folder).rglob("*.py")]
    states = [(other.name, other.stat().st_mtime_ns) for other in [path, *sorted(others)]]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:12]
