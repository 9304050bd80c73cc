"""All parts of a build as one corpus: its documents in natural order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.inputs import InputFile
from rwkvkit.data.parts import MASK, Part
from rwkvkit.data.tasks import Task

DROPPED, TRAIN, VALIDATION = 0, 1, 2
"""What becomes of a document."""


@dataclass(frozen=True)
class CorpusSlice:
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
        self.masked = any(MASK in record.checksums for record in records)

    def documents(self, source: int | None = None) -> Iterator[CorpusSlice]:
        """Yield the documents of a source, or of all, many of a part at a time."""
        for number, part in enumerate(self.parts):
            if source is not None and self._sources[number] != source:
                continue
            first, start = int(self._firsts[number]), int(self.bases[number])
            for index in part.index():
                stops = start + np.cumsum(index.sizes, dtype=np.int64)
                yield CorpusSlice(
                    source=self._sources[number],
                    first=first,
                    files=self._file_numbers[index.files],
                    offsets=index.offsets.astype(np.uint64),
                    places=stops - index.sizes,
                    sizes=index.sizes,
                    hashes=index.hashes,
                )
                first, start = first + len(stops), int(stops[-1])
