"""Compile loops with numba."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on its first call, without the GIL and without bounds checks.

    The machine code is kept for the next process, if any folder takes it.
    """
    try:
        return numba.njit(nogil=True, boundscheck=False, cache=True)(function)
    except RuntimeError:  # no writable cache folder
        return numba.njit(nogil=True, boundscheck=False)(function)
