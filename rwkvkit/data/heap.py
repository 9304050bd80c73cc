"""Freed memory that stays with a build."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_KEPT = 64 << 20  # what the arrays of a chunk take, and more
_LARGEST_KEPT = 32 << 20  # of one block; glibc takes no more


def keep_freed_memory() -> None:
    """Keep freed blocks of megabytes for the next chunk, where the C library is glibc.

    Otherwise each goes back to the kernel, which has to clear every page of the next one.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
