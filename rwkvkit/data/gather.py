"""Copy documents out of the parts of a build, in any order.

A block of the output takes a little from every part, so the files of parts stay open, and documents
are read in the order in which they lie. Where many lie in little, the file is mapped and they are
picked from it: to map a page costs a fraction of copying it. Elsewhere a call reads one of them, or
a few that lie close, since it costs about what copying a page does.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.blocks import Block
from rwkvkit.data.corpus import Corpus
from rwkvkit.data.parts import TOKENS
from rwkvkit.tokenizer.jit import compiled
from rwkvkit.tokenizer.machine import map_at, move, read_at, unmap

CopyDocuments = Callable[[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[np.int64]], None]
"""Copies documents: their places in ascending order, their sizes, what to write to, and where."""

_GAP = 8 << 10  # bytes between documents that take less time to read than another call
_RUN = 256 << 10  # bytes that are read at once
_SPACING = 32 << 10  # bytes of a file that are mapped in the time that a call takes
_FOLD = 2 << 20  # bytes that windows begin with a multiple of: the largest pages there are
_WINDOW = 16 << 20  # bytes that are mapped at once
_FOR_A_THREAD = 1 << 20  # bytes that are worth one
_OTHER_FILES = 256  # that the process may have open besides
_CLOSED = -1  # in place of a descriptor


class Reader:
    """Reads the tokens, or the mask, of documents, until it is closed.

    Args:
        corpus: where they lie.
        suffix: ``parts.TOKENS``, or ``parts.MASK`` where the corpus is masked.

    Raises:
        OSError: a part is gone.
    """

    def __init__(self, corpus: Corpus, suffix: str) -> None:
        self._bases = corpus.bases
        self._dtype = corpus.dtype if suffix == TOKENS else np.dtype(np.uint8)
        self._paths = [part.path(suffix) for part in corpus.parts]
        count = len(self._paths)
        self._descriptors = np.full(count, _CLOSED, np.int32)
        for number in range(min(count, _most_open(count))):
            self._descriptors[number] = self._open(number)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors[self._descriptors >= 0].tolist():
            os.close(descriptor)
        self._descriptors[self._descriptors >= 0] = _CLOSED

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
        bounds = np.searchsorted(places, self._bases)
        numbers = np.flatnonzero(np.diff(bounds))
        columns = [_in_bytes(column, self._dtype) for column in (places, sizes, targets)]
        bases = _in_bytes(self._bases, self._dtype)
        buffer = np.empty(_RUN, np.uint8)
        closed = (self._descriptors[numbers] == _CLOSED).any()
        step = 1 if closed else max(len(numbers), 1)  # one more file at a time
        for first in range(0, len(numbers), step):
            some = numbers[first : first + step]
            start, stops = int(bounds[some[0]]), bounds[some + 1]
            with self._opened(some) as descriptors:
                done = _read_parts(
                    descriptors, bases[some], stops, *columns, start, out.view(np.uint8), buffer
                )
            if done < stops[-1]:
                self._explain(*(int(column[done]) for column in columns[:2]))

    @contextlib.contextmanager
    def _opened(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int32]]:
        """Yield descriptors of some parts, among them such as do not stay open."""
        descriptors = self._descriptors[numbers]
        added = []
        try:
            for i in np.flatnonzero(descriptors == _CLOSED).tolist():
                descriptors[i] = self._open(int(numbers[i]))
                added.append(descriptors[i])
            yield descriptors
        finally:
            for descriptor in added:
                os.close(descriptor)

    def _open(self, number: int) -> int:
        return os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)

    def _explain(self, start: int, size: int) -> None:
        """Raise the error for what could not be read: why, Python can tell."""
        bases = _in_bytes(self._bases, self._dtype)
        number = int(np.searchsorted(bases, start, side="right")) - 1
        path = self._paths[number]
        with path.open("rb") as file:
            os.pread(file.fileno(), size, start - int(bases[number]))
        raise OSError(errno.EIO, "a part of this build is shorter than it was", str(path))


def _most_open(wanted: int) -> int:
    """Return how many files one of two readers may keep open.

    The process is allowed more files for that, if it can be: the usual limit of 1,024 is there for
    programs that use ``select``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited, needed = resource.RLIM_INFINITY, 2 * wanted + _OTHER_FILES
    if soft == unlimited:
        return wanted
    if soft < needed:
        more = needed if hard == unlimited else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # some systems have a lower limit yet
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return max(soft - _OTHER_FILES, 0) // 2


class Gatherer:
    """Copies the documents of blocks with some threads, until it is closed.

    Args:
        threads: how many read at a time, at most.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def gather(self, copy: CopyDocuments, block: Block, out: NDArray[Any]) -> None:
        """Fill ``out`` with what the documents of a block hold, one after another.

        Args:
            copy: copies some of them.
            block: which, and where each goes.
            out: to write to, as long as the block.
        """
        threads = min(self._threads, 1 + out.nbytes // _FOR_A_THREAD)
        assert len(out) == block.n_tokens  # what copies does not check it
        places, sizes, targets = block.places, block.sizes, block.targets
        if (places[1:] < places[:-1]).any():
            order = np.argsort(places)
            places, sizes, targets = places[order], sizes[order], targets[order]
        if threads == 1:
            copy(places, sizes, out, targets)
            return
        ends = np.cumsum(sizes, dtype=np.int64)
        cuts = np.searchsorted(ends, len(out) * np.arange(1, threads) // threads)
        shares = zip(*(np.split(column, cuts) for column in (places, sizes, targets)), strict=True)
        copying = [self._pool.submit(copy, own, counts, out, to) for own, counts, to in shares]
        wait(copying)  # also where one fails: the others still write to the room
        for each in copying:
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


@compiled
def _read_parts(descriptors, bases, stops, starts, sizes, targets, i, out, buffer):  # type: ignore[no-untyped-def]
    """Copy pieces of files, those of one after another; everything in bytes.

    Args:
        descriptors: of the files.
        bases: where each file starts among all.
        stops: number of the piece after each file's last.
        starts: where each piece starts among all files.
        sizes: of the pieces.
        targets: where each goes to.
        i: number of the first piece.
        out: to write to.
        buffer: for what is read at once.

    Returns:
        The number of the next piece: the last of ``stops``, unless that piece cannot be read.
    """
    for k in range(len(descriptors)):
        i = _read_windows(
            descriptors[k], bases[k], starts, sizes, targets, i, stops[k], out, buffer
        )
        if i < stops[k]:
            break
    return i


@compiled
def _read_windows(descriptor, base, starts, sizes, targets, i, last, out, buffer):  # type: ignore[no-untyped-def]
    """Copy pieces of a file from the ``i``-th to ``last``; see ``_read_parts``."""
    target, held = np.uint64(out.ctypes.data), np.uint64(buffer.ctypes.data)
    while i < last:
        offset = (starts[i] - base) // _FOLD * _FOLD
        after = i + 1
        while after < last and starts[after] + sizes[after] <= base + offset + _WINDOW:
            after += 1
        size = starts[after - 1] + sizes[after - 1] - base - offset
        address = np.uint64(0)
        # The last byte has to be there: a mapping continues with zeros to the end of a page.
        dense = size <= (after - i) * _SPACING
        if dense and read_at(descriptor, held, np.uint64(1), offset + size - 1):
            address = map_at(descriptor, np.uint64(size), offset)
        if address:
            for k in range(i, after):
                move(
                    target + np.uint64(targets[k]),
                    address + np.uint64(starts[k] - base - offset),
                    np.uint64(sizes[k]),
                )
            unmap(address, np.uint64(size))
        else:
            done = _read_runs(descriptor, base, starts, sizes, targets, i, after, out, buffer)
            if done < after:
                return done
        i = after
    return i


@compiled
def _read_runs(descriptor, base, starts, sizes, targets, i, last, out, buffer):  # type: ignore[no-untyped-def]
    """Copy pieces of a file from the ``i``-th to ``last``; see ``_read_parts``."""
    target, held = np.uint64(out.ctypes.data), np.uint64(buffer.ctypes.data)
    while i < last:
        start, stop, after = starts[i], starts[i] + sizes[i], i + 1
        while after < last and starts[after] <= stop + _GAP:
            further = max(stop, starts[after] + sizes[after])
            if further - start > len(buffer):
                break
            stop = further
            after += 1
        size, offset = np.uint64(stop - start), start - base
        if after == i + 1:
            if not read_at(descriptor, target + np.uint64(targets[i]), size, offset):
                return i
        else:
            if not read_at(descriptor, held, size, offset):
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
