"""The second half of a build: the documents of all parts, written in their final order.

A pass is a sequence of entries, one for each document and copy that stands in it. A shuffled pass
sorts them by key, in memory if they fit, else bucket by bucket. The output is made in blocks: the
documents of one are copied from where they lie while the one before is written and hashed. Where
the machine cannot hold the tokens in its cache of files, they go through the buckets too.
"""

import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.binidx_writer import BinidxWriter
from rwkvkit.data.blocks import PIECE_BYTES, Block, by_key, in_order
from rwkvkit.data.buckets import KEY, Buckets, bucket_count
from rwkvkit.data.corpus import TRAIN, VALIDATION, Corpus, CorpusSlice
from rwkvkit.data.gather import CopyDocuments, Gatherer, Reader, pick
from rwkvkit.data.order import make_keys
from rwkvkit.data.parts import MASK, TOKENS
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.selection import Selection

_ENTRY = np.dtype([(KEY, "<u8"), ("place", "<i8"), ("size", "<i4")])
_ENTRY_BYTES = 3 * _ENTRY.itemsize  # of memory for an entry while its bucket is sorted
_LONG = 4 << 10  # bytes of a document that is read by itself, in whatever block it stands
_BLOCK = 16 << 20  # bytes of a block of long documents
_SHARE = 8  # of the corpus that a block of short ones has: fewer read less, more take less memory
_CGROUP = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is no limit

Shuffle = Literal["keys", "reference"]
Copiers = dict[str, CopyDocuments]
"""What copies documents from where they lie, by suffix."""
Rooms = dict[str, NDArray[Any]]
"""Arrays to gather into, by suffix: memory that is new costs more than what is copied to it."""


@dataclass(frozen=True)
class Order:
    """In which order, and how often, documents stand in the corpus.

    Attributes:
        repeats: how often the documents of each source stand in a pass. Unshuffled, a source
            stands that many times in a row.
        epochs: number of passes.
        shuffle: by keys, as ``random.Random(seed).shuffle`` does, or None for the natural order.
        seed: of the shuffle.
    """

    repeats: Sequence[int]
    epochs: int
    shuffle: Shuffle | None
    seed: int


def count_output(selection: Selection, order: Order) -> tuple[int, int]:
    """Return documents and tokens that the output will have, repetitions counted."""
    documents = tokens = 0
    for some in selection.documents(TRAIN):
        repeat = order.repeats[some.source]
        documents += repeat * len(some.sizes)
        tokens += repeat * int(some.sizes.sum(dtype=np.int64))
    return order.epochs * documents, order.epochs * tokens


class CorpusWriter:
    """Writes the outputs of a build from its parts.

    Args:
        corpus: the parts.
        selection: what stands in which output.
        folder: for temporary files.
        memory: bytes that entries, buckets and blocks may take.
        threads: how many gather tokens.
        report: called with every block.
    """

    def __init__(
        self,
        corpus: Corpus,
        selection: Selection,
        folder: Path,
        *,
        memory: int,
        threads: int,
        report: Report,
    ) -> None:
        self._corpus = corpus
        self._selection = selection
        self._folder = folder
        self._memory = memory // 2
        self._gatherer = Gatherer(threads)
        self._report = report
        self._suffixes = [TOKENS, MASK] if corpus.masked else [TOKENS]
        self._readers = {suffix: Reader(corpus, suffix) for suffix in self._suffixes}
        self._copiers: Copiers = {suffix: each.read for suffix, each in self._readers.items()}
        self._block_bytes = self._choose_block(memory // 4)

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._gatherer.close()
        for reader in self._readers.values():
            reader.close()

    def write(self, prefix: Path, order: Order) -> BinidxWriter:
        """Write the training set in its order; return the closed writer."""
        total = count_output(self._selection, order)
        return self._write(prefix, self._passes(order, total[0] // order.epochs), total[1])

    def write_validation(self, prefix: Path) -> BinidxWriter:
        """Write the validation set, each document once in natural order; return the writer."""
        total = sum(
            int(documents.sizes.sum(dtype=np.int64))
            for documents in self._selection.documents(VALIDATION)
        )
        blocks = (
            (self._copiers, block)
            for documents in self._selection.documents(VALIDATION)
            for block in self._in_order(documents.places, documents.sizes)
        )
        return self._write(prefix, blocks, total)

    def _passes(self, order: Order, n_entries: int) -> Iterator[tuple[Copiers, Block]]:
        if order.shuffle is None:
            for _ in range(order.epochs):
                for documents, _ in self._occurrences(order):
                    for block in self._in_order(documents.places, documents.sizes):
                        yield self._copiers, block
        elif order.shuffle == "reference":
            for places, sizes in self._reference_passes(order):
                for block in self._in_order(places, sizes):
                    yield self._copiers, block
        else:
            for number in range(order.epochs):
                yield from self._sorted_pass(order, number, n_entries)

    def _occurrences(self, order: Order) -> Iterator[tuple[CorpusSlice, int]]:
        """Yield the documents of a pass in natural order, each with the number of its copy."""
        for source, repeat in enumerate(order.repeats):
            for copy in range(repeat):
                for documents in self._selection.documents(TRAIN, source):
                    yield documents, copy

    def _reference_passes(
        self, order: Order
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Shuffle a list again for each pass, as the reference does with its lines.

        Yields:
            Places and sizes of the documents of a pass.
        """
        pieces = [(some.places, some.sizes) for some, _ in self._occurrences(order)]
        places, sizes = (np.concatenate(column) for column in zip(*pieces, strict=True))
        lines = list(range(len(places)))
        generator = random.Random(order.seed)
        for _ in range(order.epochs):
            generator.shuffle(lines)
            numbers = np.array(lines)
            yield places[numbers], sizes[numbers]

    def _sorted_pass(
        self, order: Order, number: int, n_entries: int
    ) -> Iterator[tuple[Copiers, Block]]:
        carried = self._carry_tokens()
        share = n_entries / max(self._corpus.n_documents, 1)
        n_bytes = _ENTRY_BYTES * n_entries + (round(share * self._token_bytes()) if carried else 0)
        count = bucket_count(n_bytes, self._memory)
        if count == 1:
            for block in self._by_key(*self._columns(order, number, n_entries)):
                yield self._copiers, block
            return
        buckets = Buckets(self._folder / "pass", count, _ENTRY)
        rooms: Rooms = {}
        for documents, copy in self._occurrences(order):
            entries = np.empty(len(documents.sizes), _ENTRY)
            entries[KEY] = _keys(order, number, documents, copy)
            entries["place"], entries["size"] = documents.places, documents.sizes
            for bucket, own in buckets.add(entries):
                if carried:
                    for block in self._in_order(entries["place"][own], entries["size"][own]):
                        for suffix, data in self._gather(self._copiers, block, rooms).items():
                            buckets.append(bucket, suffix, data)
        for bucket in range(buckets.count):
            entries = buckets.take(bucket)
            copiers = self._copiers
            if carried:
                entries["place"] = np.cumsum(entries["size"], dtype=np.int64) - entries["size"]
                copiers = {
                    suffix: partial(pick, buckets.take_file(bucket, suffix, self._dtype(suffix)))
                    for suffix in self._suffixes
                }
            for block in self._by_key(*(entries[name].copy() for name in (KEY, "place", "size"))):
                yield copiers, block
        buckets.close()

    def _columns(
        self, order: Order, number: int, n_entries: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int32]]:
        """Return keys, places and sizes of a whole pass."""
        keys = np.empty(n_entries, np.uint64)
        places = np.empty(n_entries, np.int64)
        sizes = np.empty(n_entries, np.int32)
        start = 0
        for documents, copy in self._occurrences(order):
            own = slice(start, start + len(documents.sizes))
            keys[own] = _keys(order, number, documents, copy)
            places[own], sizes[own] = documents.places, documents.sizes
            start = own.stop
        assert start == n_entries
        return keys, places, sizes

    def _in_order(self, places: NDArray[np.int64], sizes: NDArray[np.int32]) -> Iterator[Block]:
        return in_order(places, sizes, self._token_width(), self._block_bytes)

    def _by_key(
        self, keys: NDArray[np.uint64], places: NDArray[np.int64], sizes: NDArray[np.int32]
    ) -> Iterator[Block]:
        return by_key(keys, places, sizes, self._token_width(), self._block_bytes)

    def _carry_tokens(self) -> bool:
        """Whether tokens go through the buckets: else the disk would have to seek each document."""
        return self._token_bytes() > max(self._memory, _cache_bytes() // 2)

    def _token_bytes(self) -> int:
        return self._token_width() * self._corpus.n_tokens

    def _token_width(self) -> int:
        return sum(self._dtype(suffix).itemsize for suffix in self._suffixes)

    def _dtype(self, suffix: str) -> np.dtype[Any]:
        return self._corpus.dtype if suffix == TOKENS else np.dtype(np.uint8)

    def _choose_block(self, most: int) -> int:
        """Return how many bytes a block has: with more, fewer short documents are read alone."""
        n_bytes, n_documents = self._token_bytes(), self._corpus.n_documents
        if n_bytes > _LONG * n_documents or self._carry_tokens():
            return min(most, _BLOCK)
        return min(most, max(_BLOCK, (n_bytes + PIECE_BYTES * n_documents) // _SHARE + 1))

    def _write(
        self, prefix: Path, blocks: Iterator[tuple[Copiers, Block]], n_tokens: int
    ) -> BinidxWriter:
        """Gather blocks, while a thread writes and hashes the one before."""
        width = self._corpus.dtype.itemsize
        with (
            BinidxWriter(prefix, self._corpus.dtype, masked=self._corpus.masked) as writer,
            ThreadPoolExecutor(1) as thread,
        ):
            written: Future[None] | None = None
            rooms: tuple[Rooms, Rooms] = {}, {}

            def wait() -> None:
                if written:
                    written.result()
                documents, done = writer.n_documents, writer.n_tokens
                self._report(Progress("write", width * done, width * n_tokens, documents, done, 0))

            for number, (copiers, block) in enumerate(blocks):
                gathered = self._gather(copiers, block, rooms[number % 2])
                wait()
                tokens, mask = gathered[TOKENS], gathered.get(MASK)
                written = thread.submit(writer.add_many, tokens, block.ordered, mask)
            wait()
        return writer

    def _gather(self, copiers: Copiers, block: Block, rooms: Rooms) -> Rooms:
        """Return what the documents of a block hold, one after another; it lies in ``rooms``."""
        count = block.n_tokens
        gathered = {}
        for suffix in self._suffixes:
            if suffix not in rooms or len(rooms[suffix]) < count:
                most = self._block_bytes // self._token_width()
                rooms[suffix] = np.empty(max(count, most), self._dtype(suffix))
            gathered[suffix] = rooms[suffix][:count]
            self._gatherer.gather(copiers[suffix], block, gathered[suffix])
        return gathered


def _keys(order: Order, number: int, documents: CorpusSlice, copy: int) -> NDArray[np.uint64]:
    """Return the keys of documents for the pass of that number."""
    words = (number, documents.source, documents.files, documents.offsets, copy)
    return make_keys(order.seed, words, len(documents.sizes))


def _cache_bytes() -> int:
    """Return what the kernel may use to keep files in memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(_CGROUP.read_text()))
    except (OSError, ValueError):
        return physical
