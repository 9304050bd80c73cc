"""Which documents stand where: duplicates in no output, the validation split in its own."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.buckets import KEY, Buckets, bucket_count
from rwkvkit.data.corpus import DROPPED, TRAIN, VALIDATION, Corpus, CorpusSlice
from rwkvkit.data.order import SPLIT, below, make_keys

_HASHED = np.dtype([(KEY, "<u8"), ("rest", "<u8"), ("document", "<i8")])
_HASHED_BYTES = 3 * _HASHED.itemsize  # of memory for a record while its bucket is sorted


@dataclass(frozen=True)
class Rules:
    """What decides about a document.

    Attributes:
        seed: of the keys.
        dedup: keep only the first of documents with the same content.
        validation: share that goes to the validation set; 0 for none.
    """

    seed: int
    dedup: bool
    validation: float

    @property
    def keep_all(self) -> bool:
        """Whether every document is for training."""
        return not self.dedup and not self.validation

    @property
    def need_hashes(self) -> bool:
        """Whether content hashes must be there."""
        return self.dedup or bool(self.validation)


class Selection:
    """What became of every document: dropped, for training or for validation.

    Attributes:
        duplicates: documents whose content stood before.
    """

    def __init__(self, corpus: Corpus, rules: Rules, folder: Path, memory: int) -> None:
        """Decide about every document, within ``memory`` bytes and with files in ``folder``."""
        self._corpus = corpus
        self._path: Path | None = None
        self.duplicates = 0
        if rules.keep_all or not corpus.n_documents:
            return
        self._path = folder / "selection"
        with self._path.open("wb") as file:
            for documents in corpus.documents():
                _fates(documents, rules).tofile(file)
        if rules.dedup:
            self._drop_duplicates(folder / "hashes", memory)

    def documents(self, fate: int, source: int | None = None) -> Iterator[CorpusSlice]:
        """Yield the documents of one fate, of one source or all, in natural order."""
        for documents in self._corpus.documents(source):
            if self._path is not None:
                yield _chosen(documents, self._stored(documents) == fate)
            elif fate == TRAIN:
                yield documents

    def _drop_duplicates(self, folder: Path, memory: int) -> None:
        count = bucket_count(_HASHED_BYTES * self._corpus.n_documents, memory)
        buckets = Buckets(folder, count, _HASHED)
        for documents in self._corpus.documents():
            assert documents.hashes is not None
            records = np.empty(len(documents.sizes), _HASHED)
            records[KEY], records["rest"] = documents.hashes.T
            records["document"] = documents.first + np.arange(len(records))
            buckets.add(records)
        for number in range(count):
            records = buckets.take(number)
            order = np.lexsort((records["rest"], records[KEY]))  # stable: the first stays first
            records = records[order]
            again = np.zeros(len(records), bool)
            again[1:] = (np.diff(records[KEY]) == 0) & (np.diff(records["rest"]) == 0)
            self._drop(np.sort(records["document"][again]))
        buckets.close()

    def _drop(self, documents: NDArray[np.int64]) -> None:
        self.duplicates += len(documents)
        if len(documents):
            assert self._path is not None
            with (
                self._path.open("r+b") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE) as mapped,
            ):
                fates = np.frombuffer(mapped, np.uint8)
                fates[documents] = DROPPED
                del fates

    def _stored(self, documents: CorpusSlice) -> NDArray[np.uint8]:
        assert self._path is not None
        return np.fromfile(self._path, np.uint8, len(documents.sizes), offset=documents.first)


def _fates(documents: CorpusSlice, rules: Rules) -> NDArray[np.uint8]:
    count = len(documents.sizes)
    fates = np.full(count, TRAIN, np.uint8)
    if rules.validation:
        assert documents.hashes is not None
        words = (SPLIT, documents.hashes[:, 0], documents.hashes[:, 1])
        keys = make_keys(rules.seed, words, count)
        fates[below(keys, rules.validation)] = VALIDATION
    return fates


def _chosen(documents: CorpusSlice, which: NDArray[Any]) -> CorpusSlice:
    return replace(
        documents,
        files=documents.files[which],
        offsets=documents.offsets[which],
        places=documents.places[which],
        sizes=documents.sizes[which],
        hashes=None,
    )
