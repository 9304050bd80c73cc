"""All parts of a build as one corpus: its documents in natural order, its tokens by position."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.buckets import grouped
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.parts import MASK, TOKENS, Part
from rwkvkit.data.tasks import Task
from rwkvkit.tokenizer.jit import compiled

_TOUCHED = 2 << 20  # bytes the kernel may map around a page that is read: a large folio
_FEWEST = 64  # documents that are copied at once

DROPPED, TRAIN, VALIDATION = 0, 1, 2
"""What becomes of a document."""


@dataclass(frozen=True)
class Documents:
    """Some documents of one source, in natural order.

    Attributes:
        source: index of their source in the recipe.
        first: number of the first one in the corpus, if they follow one another.
        files: index of each one's file in the source, uint64 [documents].
        offsets: byte offset of each one's line in its file, uint64 [documents].
        places: position of each one's first token in the corpus, int64 [documents].
        sizes: tokens in each, the ending 0 included, int32 [documents].
        hashes: of each one's content, uint64 [documents, 2], if the parts have them.
    """

    source: int
    first: int
    files: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    hashes: NDArray[np.uint64] | None


class Corpus:
    """The parts of a build, in order.

    Attributes:
        dtype: type of the tokens.
        masked: whether there is a mask beside the tokens.
        n_documents: documents in all parts.
        n_tokens: tokens in all parts.
    """

    def __init__(
        self, tasks: Sequence[Task], parts: Sequence[Part], inputs: Sequence[InputFile]
    ) -> None:
        filled = [
            (part, task.files[0].source)
            for task, part in zip(tasks, parts, strict=True)
            if part.record.documents
        ]
        self.parts = [part for part, _ in filled]
        self._sources = [source for _, source in filled]
        self._file_numbers = np.array([file.number for file in inputs], np.uint64)
        records = [part.record for part in self.parts]
        self._firsts = np.cumsum([0, *(record.documents for record in records)])
        self.bases = np.cumsum([0, *(record.tokens for record in records)], dtype=np.int64)
        self.n_documents = int(self._firsts[-1])
        self.n_tokens = int(self.bases[-1])
        self.dtype = np.dtype(records[0].dtype if records else np.uint16)
        self.masked = any(MASK in record.crc32 for record in records)

    def documents(self, source: int | None = None) -> Iterator[Documents]:
        """Yield the documents of a source, or of all, a part at a time."""
        for number, part in enumerate(self.parts):
            if source is not None and self._sources[number] != source:
                continue
            sizes = part.sizes
            places = int(self.bases[number]) + np.cumsum(sizes, dtype=np.int64) - sizes
            yield Documents(
                source=self._sources[number],
                first=int(self._firsts[number]),
                files=self._file_numbers[part.files],
                offsets=part.offsets.astype(np.uint64),
                places=places,
                sizes=sizes,
                hashes=part.hashes if part.record.hashed else None,
            )


class Reader:
    """Reads the tokens, or the mask, of documents in any order.

    Args:
        corpus: where they lie.
        suffix: ``parts.TOKENS`` or ``parts.MASK``; a part without a mask counts whole.
        resident: bytes of mapped files that a thread holds before it gives them back.
    """

    def __init__(self, corpus: Corpus, suffix: str, resident: int) -> None:
        self._bases = corpus.bases
        self._dtype = corpus.dtype if suffix == TOKENS else np.dtype(np.uint8)
        self._maps = [_mapped(part, suffix) for part in corpus.parts]
        self._resident = resident
        self._fits = sum(len(mapped) for mapped in self._maps if mapped) <= resident

    def read(self, places: NDArray[np.int64], sizes: NDArray[np.int32]) -> NDArray[Any]:
        """Return what documents hold, one after another, [sum of sizes]."""
        targets = np.cumsum(sizes, dtype=np.int64) - sizes
        out = np.empty(int(sizes.sum(dtype=np.int64)), self._dtype)
        kind = np.uint16 if len(self._maps) <= 1 << 16 else np.int64  # the first sorts faster
        parts = (np.searchsorted(self._bases, places, side="right") - 1).astype(kind)
        held = _Held(self._resident)
        for number, every in grouped(parts, np.argsort(parts, kind="stable")):
            mapped = self._maps[number]
            source = None if mapped is None else np.frombuffer(mapped, self._dtype)
            step = len(every)
            if mapped and len(mapped) > self._resident:
                step = max(_FEWEST, self._resident // _TOUCHED)
            for first in range(0, len(every), step):
                own = every[first : first + step]
                starts = places[own] - self._bases[number]
                copy_documents(source, starts, sizes[own], out, targets[own])
                if mapped and not self._fits:
                    n_bytes = int(sizes[own].sum(dtype=np.int64)) * self._dtype.itemsize
                    held.add(mapped, n_bytes + _TOUCHED * len(own))
        held.give_back()
        return out


class _Held:
    """Mapped files whose pages count as this process's memory until they are given back.

    Otherwise it would come to hold the whole corpus, which the kernel can keep in its cache.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._maps: list[mmap.mmap] = []
        self._bytes = 0

    def add(self, mapped: mmap.mmap, touched: int) -> None:
        """Count bytes that were touched; give all back if they are too many."""
        self._maps.append(mapped)
        self._bytes += min(len(mapped), touched)
        if self._bytes > self._most:
            self.give_back()

    def give_back(self) -> None:
        """Unmap the pages."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
        self._maps.clear()
        self._bytes = 0


def copy_documents(
    source: NDArray[Any] | None,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    out: NDArray[Any],
    targets: NDArray[np.int64],
) -> None:
    """Copy ``source[starts[i]:][:sizes[i]]`` to ``out[targets[i]:]`` for every i, or ones."""
    if source is None:
        _fill(sizes, out, targets)
    else:
        assert not len(starts) or (starts.min() >= 0 and (starts + sizes).max() <= len(source))
        _copy(source, starts, sizes, out, targets)


def _mapped(part: Part, suffix: str) -> mmap.mmap | None:
    if suffix not in part.record.crc32:
        return None
    path: Path = part.path(suffix)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@compiled
def _copy(source, starts, sizes, out, targets):  # type: ignore[no-untyped-def]
    for i in range(len(starts)):
        start, target = starts[i], targets[i]
        for j in range(sizes[i]):
            out[target + j] = source[start + j]


@compiled
def _fill(sizes, out, targets):  # type: ignore[no-untyped-def]
    for i in range(len(targets)):
        for j in range(sizes[i]):
            out[targets[i] + j] = 1
