"""The encoded corpus on its way: token files in natural order, read back in the final order."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rwkvkit.tokenizer.jit import compiled

_BLOCK_TOKENS = 4 << 20
_BLOCK_DOCUMENTS = 4 << 10
_RESIDENT = 256 << 20  # bytes of mapped pages after which they are given back
_TOUCHED = 64 << 10  # bytes the kernel maps around a page that is read


class SpoolWriter:
    """Appends tokens to a temporary file of its own, which must not exist yet.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._position = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, tokens: NDArray[Any]) -> int:
        """Write ``tokens`` and return the position of the first, in tokens."""
        position = self._position
        left = tokens.data.cast("B") if len(tokens) else b""
        while left:
            left = left[self._file.write(left) :]
        self._position += len(tokens)
        return position


@dataclass(frozen=True)
class Places:
    """Where documents are spooled; one entry a document.

    Attributes:
        spools: number of the spool file, uint16 [documents].
        starts: position of the first token in it, int64 [documents].
        sizes: number of tokens, the ending 0 included, int32 [documents].
    """

    spools: NDArray[np.uint16]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int32]


class SpoolReader:
    """Reads documents back from spool files of one dtype, in any order."""

    def __init__(self, paths: list[Path], places: Places, dtype: DTypeLike = np.uint16) -> None:
        self._places = places
        self._dtype = np.dtype(dtype)
        self._maps: dict[int, mmap.mmap] = {}
        self._touched = 0
        for number, path in enumerate(paths):
            if path.exists() and path.stat().st_size:
                with path.open("rb") as file:
                    self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def blocks(
        self, documents: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
        """Yield tokens and sizes of ``documents``, in that order, a few megabytes at a time."""
        for first in range(0, len(documents), _BLOCK_DOCUMENTS):
            window = documents[first : first + _BLOCK_DOCUMENTS]
            stops = np.cumsum(self._places.sizes[window], dtype=np.int64)
            start = 0
            while start < len(window):
                before = stops[start - 1] if start else 0
                stop = int(np.searchsorted(stops, before + _BLOCK_TOKENS, side="right"))
                stop = max(stop, start + 1)
                yield self._gather(window[start:stop])
                start = stop

    def _gather(self, documents: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int32]]:
        sizes = self._places.sizes[documents]
        targets = np.cumsum(sizes, dtype=np.int64) - sizes
        tokens = np.empty(int(sizes.sum(dtype=np.int64)), self._dtype)
        spools = self._places.spools[documents]
        for number, mapped in self._maps.items():
            own = np.flatnonzero(spools == number)
            spool = np.frombuffer(mapped, self._dtype)
            starts = self._places.starts[documents[own]]
            _copy(spool, starts, sizes[own], tokens, targets[own])
        self._give_back(tokens.nbytes + _TOUCHED * len(documents))
        return tokens, sizes

    def _give_back(self, touched: int) -> None:
        """Unmap pages now and then, so that the process does not seem to hold the whole corpus."""
        if sum(map(len, self._maps.values())) <= _RESIDENT:
            return
        self._touched += touched
        if self._touched > _RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


@compiled
def _copy(source, starts, sizes, out, targets):  # type: ignore[no-untyped-def]
    """Copy ``source[starts[i]:][:sizes[i]]`` to ``out[targets[i]:]`` for every i."""
    for i in range(len(starts)):
        start, target = starts[i], targets[i]
        for j in range(sizes[i]):
            out[target + j] = source[start + j]
