"""What happens to a chunk: its documents read, encoded and checked, in one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.chunks import Chunk
from rwkvkit.data.documents import Reject, read_chunk
from rwkvkit.data.stages import Encode, Read, Stage
from rwkvkit.errors import DataError

_END = b"\xff"  # becomes token 0
_MAX_TOKENS = 2**31 - 1  # in a document: the index of a binidx holds int32


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of a chunk as tokens; one entry a document unless said otherwise.

    Attributes:
        files: index of the document's file in the list of inputs, uint32 [documents].
        offsets: byte offset of the document's line in its file, int64 [documents].
        sizes: tokens, the ending 0 included, int32 [documents].
        tokens: of all documents, one after another, [tokens].
        rejects: lines that gave no document; at most one unless bad lines are skipped.
        n_lines: lines in the chunk, 0 for text files.
        mask: 1 where a token counts in the loss, uint8 [tokens]; None if all do.
        hashes: of each document's content, uint64 [documents, 2], or None.
        filtered: documents that filters dropped.
    """

    files: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    tokens: NDArray[Any]
    rejects: list[Reject]
    n_lines: int
    mask: NDArray[np.uint8] | None = None
    hashes: NDArray[np.uint64] | None = None
    filtered: int = 0


class ChunkWork:
    """The stages of a chain that see one chunk at a time; can be sent to another process.

    Attributes:
        skip_bad: whether bad lines are left out instead of ending the build.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        [read] = [stage for stage in stages if isinstance(stage, Read)]
        [self._encode] = [stage for stage in stages if isinstance(stage, Encode)]
        self.skip_bad = read.on_error == "skip"

    def load(self) -> None:
        """Load what the work needs, so that what is wrong with it is said before any work.

        Raises:
            DataError, SetupError: the vocabulary is damaged or missing.
        """
        self._encode.load()

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Encode the documents of a chunk.

        Raises:
            DataError: a file cannot be read, or a document is too long for the index.
        """
        documents = read_chunk(chunk, skip_bad=self.skip_bad)
        tokens = self._encode.load().encode_joined(_END.join([*documents.texts, b""]))
        ends = np.flatnonzero(tokens == 0)
        assert len(ends) == len(documents.texts)
        sizes = np.diff(ends, prepend=-1)
        if sizes.size and sizes.max() > _MAX_TOKENS:
            raise DataError(
                f"a document has {sizes.max()} tokens; a binidx holds up to {_MAX_TOKENS}",
                where=chunk.files[0].name,
                hint="split it",
            )
        return EncodedChunk(
            files=np.asarray(documents.files, np.uint32),
            offsets=np.asarray(documents.offsets, np.int64),
            sizes=sizes.astype(np.int32),
            tokens=tokens,
            rejects=documents.rejects,
            n_lines=documents.n_lines,
        )
