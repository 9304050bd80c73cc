"""What happens to a chunk: its documents read, encoded and checked, in one process."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.chunks import Chunk
from rwkvkit.data.documents import Documents, Reject, read_chunk
from rwkvkit.data.filters import Filter
from rwkvkit.data.forms import Column
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.order import in_fraction
from rwkvkit.data.readers import read_file_chunk
from rwkvkit.data.round_trip import check_round_trip
from rwkvkit.data.stages import Encode, Read, Stage
from rwkvkit.data.text_stages import TextStage, run_stage
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.world import WorldTokenizer

_MAX_TOKENS = 2**31 - 1  # in a document: the index of a binidx holds int32


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of a chunk as tokens; one entry a document unless said otherwise.

    Attributes:
        files: index of the document's file in the list of inputs, uint32 [documents].
        offsets: where in its file the document starts, see ``Documents``, int64 [documents].
        sizes: tokens, the ending one included, int32 [documents].
        tokens: of all documents, one after another, uint16 or int32 [tokens].
        rejects: lines that gave no document; at most one unless bad lines are skipped.
        n_lines: see ``Documents``.
        mask: uint8 [tokens], 1 where the token counts in the loss; None unless the corpus is
            masked.
        filtered: documents that stages left out.
        left_out: documents outside the fraction of their source, which stages never see.
    """

    files: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    tokens: NDArray[Any]
    rejects: list[Reject]
    n_lines: int
    mask: NDArray[np.uint8] | None = None
    filtered: int = 0
    left_out: int = 0


class ChunkWork:
    """The stages of a chain that see one chunk at a time; can be sent to another process.

    Attributes:
        skip_bad: whether bad lines are left out instead of ending the build.
        masked: whether the encoded chunks have a mask.

    Args:
        stages: the chain.
        seed: decides which documents are in the fraction of their source.
    """

    def __init__(self, stages: Sequence[Stage], seed: int) -> None:
        [read] = [stage for stage in stages if isinstance(stage, Read)]
        [self._encode] = [stage for stage in stages if isinstance(stage, Encode)]
        self._text_stages = [stage for stage in stages if isinstance(stage, TextStage)]
        self.skip_bad = read.on_error == "skip"
        self.masked = read.masked
        self._fractions = [source.fraction for source in read.sources]
        self._seed = seed
        self._vocabulary: str | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the tokens in the encoded chunks."""
        return self._encode.load().dtype

    def load(self) -> None:
        """Load what the work needs, so that what is wrong with it is said before any work.

        From then on the work is for this vocabulary, wherever it goes.

        Raises:
            DataError, SetupError: the vocabulary is damaged or missing, or a stage cannot be sent.
        """
        for stage in self._text_stages:
            try:
                pickle.dumps(stage)
            except Exception as error:
                raise DataError(
                    f"the stage {stage.key} cannot be sent to another process: {error}",
                    hint="make what cannot be (a lock, an open file) in run, not in the stage",
                ) from error
        self._vocabulary = self._encode.load().fingerprint

    def is_compiled(self, file: InputFile) -> bool:
        """Return whether nearly all of the work on a file happens in compiled loops."""
        return (
            file.format == "jsonl"
            and not file.has_own_reader
            and isinstance(file.form, Column)
            and isinstance(self._encode.load(), WorldTokenizer)
            and not self._text_stages
        )

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Encode the documents of a chunk.

        Raises:
            DataError: a file cannot be read, a document is too long for the index, or the
                vocabulary is not the one that ``load`` found.
        """
        read = read_file_chunk if chunk.files[0].has_own_reader else read_chunk
        documents = read(chunk, skip_bad=self.skip_bad)
        n_read = len(documents.texts)
        if self._fractions[chunk.files[0].source] < 1:
            documents = documents.only(self._taken(documents, chunk))
        n_left_out = n_read - len(documents.texts)
        n_filtered = 0
        for stage in self._text_stages:
            documents, dropped = run_stage(stage, documents, chunk.files[0].name)
            n_filtered += dropped
        tokenizer = self._encode.load()
        if self._vocabulary not in (None, tokenizer.fingerprint):
            raise DataError(
                "the vocabulary changed while the build ran",
                where=self._encode.file or self._encode.tokenizer,
                hint="run it again",
            )
        tokens, sizes = tokenizer.encode_segments(documents.joined())
        mask: NDArray[np.uint8] | None = None
        if documents.marks is not None:
            tokens, sizes, mask = _without_seams(tokens, sizes, documents.marks)
        elif self.masked:
            mask = np.repeat(_plain_marks(documents, chunk), sizes)
        full = self._encode.verify == "full"
        check_round_trip(tokenizer, documents, tokens, sizes, chunk, full=full)
        if sizes.size and sizes.max() > _MAX_TOKENS:
            raise DataError(
                f"a document has {sizes.max()} tokens; a binidx holds up to {_MAX_TOKENS}",
                where=chunk.files[0].name,
                hint="split it",
            )
        kept = self._kept(sizes)
        in_kept = np.repeat(kept, sizes) if not kept.all() else slice(None)
        return EncodedChunk(
            files=np.asarray(documents.files, np.uint32)[kept],
            offsets=np.asarray(documents.offsets, np.int64)[kept],
            sizes=sizes[kept].astype(np.int32),
            tokens=tokens[in_kept],
            rejects=documents.rejects,
            n_lines=documents.n_lines,
            mask=mask[in_kept] if self.masked and mask is not None else None,
            filtered=n_filtered + int((~kept).sum()),
            left_out=n_left_out,
        )

    def _taken(self, documents: Documents, chunk: Chunk) -> NDArray[np.bool_]:
        """Return which documents are in the fraction of their source, bool [documents]."""
        source = chunk.files[0].source
        numbers = np.array([file.number for file in chunk.files], np.int64)
        files = numbers[np.asarray(documents.files, np.int64) - chunk.first_file]
        offsets = np.asarray(documents.offsets, np.int64)
        return in_fraction(self._seed, self._fractions[source], source, files, offsets)

    def _kept(self, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which documents no filter leaves out for their size in tokens."""
        kept = np.ones(len(sizes), bool)
        for stage in self._text_stages:
            if isinstance(stage, Filter):
                kept &= stage.keeps_size(sizes)
        return kept


def _plain_marks(documents: Documents, chunk: Chunk) -> NDArray[np.uint8]:
    """Return for each document whether its source counts in the loss."""
    counted = np.array([file.loss != "none" for file in chunk.files], np.uint8)
    return counted[np.asarray(documents.files, np.int64) - chunk.first_file]


def _without_seams(
    tokens: NDArray[Any], sizes: NDArray[np.int64], marks: list[bytes]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.uint8]]:
    """Join segments to documents.

    Args:
        tokens: of the segments, each with an ending one; only the last one of a document stays.
        sizes: tokens in each segment, the ending one included.
        marks: for each document a byte a segment, 1 where it counts in the loss.

    Returns:
        The tokens and sizes of the documents, and the mask: for each token the mark of its
        segment, the one that ends the document belonging to the last.
    """
    counts = np.array([len(mark) for mark in marks], np.int64)
    assert counts.sum() == len(sizes)
    stops = np.cumsum(counts)
    inner = np.ones(len(sizes), bool)
    inner[stops - 1] = False
    tokens = np.delete(tokens, np.cumsum(sizes)[inner] - 1)
    sizes = sizes - inner
    mask = np.repeat(np.frombuffer(b"".join(marks), np.uint8), sizes)
    return tokens, np.add.reduceat(sizes, stops - counts) if len(counts) else sizes, mask
