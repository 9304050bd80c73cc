"""Copy documents out of the parts of a build, in any order.

A call to read a document costs about what a page of it does. So documents are read in the order in
which they lie, and where little lies between them, many at once, from which they are picked.
"""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.corpus import Corpus
from rwkvkit.data.parts import TOKENS
from rwkvkit.tokenizer.jit import compiled
from rwkvkit.tokenizer.machine import move, read_at

Read = Callable[[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[np.int64]], None]
"""Copies documents: their places in ascending order, their sizes, what to write to, and where."""

_GAP = 8 << 10  # bytes between documents that take less time to read than another call
_RUN = 256 << 10  # bytes that are read at once
_FOR_A_THREAD = 1 << 20  # bytes that are worth one


class Reader:
    """Reads the tokens, or the mask, of documents.

    Args:
        corpus: where they lie.
        suffix: ``parts.TOKENS`` or ``parts.MASK``; a part without a mask counts whole.
    """

    def __init__(self, corpus: Corpus, suffix: str) -> None:
        self._bases = corpus.bases
        self._dtype = corpus.dtype if suffix == TOKENS else np.dtype(np.uint8)
        self._paths = [
            part.path(suffix) if suffix in part.record.checksums else None for part in corpus.parts
        ]

    def read(
        self,
        places: NDArray[np.int64],
        sizes: NDArray[Any],
        out: NDArray[Any],
        targets: NDArray[np.int64],
    ) -> None:
        """Copy what documents hold; their places are positions of tokens in the corpus.

        Raises:
            OSError: a part cannot be read.
        """
        buffer = np.empty(_RUN, np.uint8)
        firsts = np.searchsorted(places, self._bases)
        for number in np.flatnonzero(np.diff(firsts)).tolist():
            own = slice(firsts[number], firsts[number + 1])
            path = self._paths[number]
            if path is None:
                _fill(sizes[own], out, targets[own])
                continue
            columns = places[own] - self._bases[number], sizes[own], targets[own]
            starts, counts, to = (_in_bytes(column, self._dtype) for column in columns)
            _read(path, starts, counts, to, out, buffer)


def gather(
    read: Read,
    places: NDArray[np.int64],
    sizes: NDArray[np.int32],
    out: NDArray[Any],
    threads: int,
) -> None:
    """Fill ``out`` with what documents hold, in whatever order they lie, one after another.

    Args:
        read: copies some of them.
        places: where each lies.
        sizes: tokens in each; they sum up to the length of ``out``.
        out: to write to.
        threads: how many read at a time, at most.
    """
    threads = min(threads, 1 + out.nbytes // _FOR_A_THREAD)
    assert len(out) == sizes.sum(dtype=np.int64)  # what copies does not check it
    targets = np.cumsum(sizes, dtype=np.int64) - sizes
    order = np.argsort(places)
    places, sizes, targets = places[order], sizes[order], targets[order]
    if threads == 1:
        read(places, sizes, out, targets)
        return
    ends = np.cumsum(sizes, dtype=np.int64)
    cuts = np.searchsorted(ends, len(out) * np.arange(1, threads) // threads)
    shares = zip(*(np.split(column, cuts) for column in (places, sizes, targets)), strict=True)
    with ThreadPoolExecutor(threads) as pool:
        reading = [pool.submit(read, own, counts, out, to) for own, counts, to in shares]
    for each in reading:
        each.result()


def pick(
    held: NDArray[Any],
    places: NDArray[np.int64],
    sizes: NDArray[Any],
    out: NDArray[Any],
    targets: NDArray[np.int64],
) -> None:
    """Copy ``held[places[i]:][:sizes[i]]`` to ``out[targets[i]:]`` for every i."""
    assert not len(places) or (places.min() >= 0 and (places + sizes).max() <= len(held))
    assert out.dtype == held.dtype
    starts, counts, to = (_in_bytes(column, held.dtype) for column in (places, sizes, targets))
    _pick(held, starts, counts, out, to)


def _in_bytes(column: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.int64]:
    return column.astype(np.int64) * dtype.itemsize


def _read(
    path: Path,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    targets: NDArray[np.int64],
    out: NDArray[Any],
    buffer: NDArray[np.uint8],
) -> None:
    with path.open("rb", buffering=0) as file:
        done = _read_runs(file.fileno(), starts, sizes, targets, out, buffer)
        if done < len(starts):  # why, Python can tell
            os.pread(file.fileno(), int(sizes[done]), int(starts[done]))
            raise OSError(errno.EIO, "a part of this build is shorter than it was", str(path))


@compiled
def _read_runs(descriptor, starts, sizes, targets, out, buffer):  # type: ignore[no-untyped-def]
    """Copy pieces of a file; everything in bytes.

    Returns:
        How many pieces were read: all, unless the next one cannot be.
    """
    target, held = np.uint64(out.ctypes.data), np.uint64(buffer.ctypes.data)
    i = 0
    while i < len(starts):
        start, stop, after = starts[i], starts[i] + sizes[i], i + 1
        while after < len(starts) and starts[after] <= stop + _GAP:
            further = max(stop, starts[after] + sizes[after])
            if further - start > len(buffer):
                break
            stop = further
            after += 1
        if after == i + 1:
            to = target + np.uint64(targets[i])
            if not read_at(descriptor, to, np.uint64(sizes[i]), start):
                return i
        else:
            if not read_at(descriptor, held, np.uint64(stop - start), start):
                return i
            for k in range(i, after):
                move(
                    target + np.uint64(targets[k]),
                    held + np.uint64(starts[k] - start),
                    np.uint64(sizes[k]),
                )
        i = after
    return i


@compiled
def _pick(held, starts, sizes, out, targets):  # type: ignore[no-untyped-def]
    target, source = np.uint64(out.ctypes.data), np.uint64(held.ctypes.data)
    for i in range(len(starts)):
        move(target + np.uint64(targets[i]), source + np.uint64(starts[i]), np.uint64(sizes[i]))


@compiled
def _fill(sizes, out, targets):  # type: ignore[no-untyped-def]
    for i in range(len(targets)):
        out[targets[i] : targets[i] + sizes[i]] = 1
