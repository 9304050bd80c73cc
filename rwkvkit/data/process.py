"""What a build sets in its process: memory that stays, and an interpreter that changes hands."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_KEPT = 64 << 20  # what the arrays of a chunk take, and more
_LARGEST_KEPT = 32 << 20  # of one block; glibc takes no more
_SWITCH_SECONDS = 0.0005
_GARBAGE = 100_000  # objects; a build makes few that hold one another


def keep_freed_memory() -> None:
    """Keep freed blocks of megabytes for the next chunk, where the C library is glibc.

    Otherwise each goes back to the kernel, which has to clear every page of the next one.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


@contextlib.contextmanager
def shared_interpreter() -> Iterator[None]:
    """Let threads that come back from compiled loops wait less for the interpreter; then undo it.

    By default one that runs Python gives it up after 5 ms, in which a loop does a third of a chunk.
    Nor is it taken for garbage collections, which walk through all that numba and sympy import.
    """
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_GARBAGE, *thresholds[1:])
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
