"""Compile loops with numba."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = ("data", "tokenizer")  # loops call those of other files there


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on its first call, without the GIL and without bounds checks.

    The machine code is kept for the next process, if any folder takes it.
    """
    # numba names what it keeps after the function, looks only at the function's own file to see
    # whether that is outdated, and replaces it bit by bit. So a name is for one state of the files.
    try:
        function.__qualname__ += f"_{_stamp(Path(function.__code__.co_filename))}"
        return numba.njit(nogil=True, boundscheck=False, cache=True)(function)
    except (RuntimeError, OSError):  # no writable cache folder, or no source files
        return numba.njit(nogil=True, boundscheck=False)(function)


@cache
def _stamp(path: Path) -> str:
    """Return a hash of the states of a file and of those whose loops it may call."""
    others = [other for folder in _FOLDERS for other in (_PACKAGE / folder).rglob("*.py")]
    states = [(other.name, other.stat().st_mtime_ns) for other in [path, *sorted(others)]]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:12]
