"""The first half of a build: every chunk read, encoded and spooled, and the index of documents."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.chunks import Chunk, ChunkReader
from rwkvkit.data.documents import Reject
from rwkvkit.data.order import DocumentIds
from rwkvkit.data.pool import ordered_map
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.sources import InputFile
from rwkvkit.data.spool import Places, SpoolWriter
from rwkvkit.errors import DataError, SetupError


@dataclass(frozen=True)
class Piece:
    """What became of a chunk.

    Attributes:
        first_file: index of the chunk's first file in the list of inputs.
        files: index of each document's file, uint32 [documents].
        offsets: byte offset of each document's line in its file, int64 [documents].
        sizes: tokens in each document, the ending 0 included, int32 [documents].
        spool: number of the spool file that holds the tokens.
        position: of the first token in that file.
        rejects: lines that gave no document.
        n_lines: lines in the chunk, 0 for text files.
        input_bytes: bytes on disk the chunk stood for.
    """

    first_file: int
    files: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    spool: int
    position: int
    rejects: list[Reject]
    n_lines: int
    input_bytes: int


@dataclass(frozen=True)
class Index:
    """All documents in natural order: what they are called and where they are spooled."""

    ids: DocumentIds
    places: Places

    def __len__(self) -> int:
        return len(self.places.sizes)


def spool_path(folder: Path, number: int) -> Path:
    """Return the spool file of a worker."""
    return folder / f"spool-{number}"


def mask_spool_path(folder: Path, number: int) -> Path:
    """Return the spool file of a worker for the masks of its documents."""
    return folder / f"spool-{number}.mask"


def encode_corpus(
    reader: ChunkReader,
    work: ChunkWork,
    folder: Path,
    *,
    workers: int,
    report: Report,
) -> tuple[Index, list[Reject]]:
    """Encode every chunk into the spool files in ``folder``.

    Returns:
        The index of all documents, and the rejected lines with their numbers in their files.

    Raises:
        DataError: an input cannot be read, or holds what is no document and bad lines are not
            skipped; always the first such place in the corpus, whatever the number of workers.
        SetupError: the spool cannot be written.
    """
    start = partial(_chunk_encoder, work, folder)
    pieces: list[Piece] = []
    rejects: list[Reject] = []
    lines: Counter[int] = Counter()
    total = sum(file.size for file in reader.inputs)
    done = documents = tokens = 0
    for piece in ordered_map(start, reader, workers):
        for reject in piece.rejects:
            placed = replace(reject, line=lines[piece.first_file] + reject.line)
            if not work.skip_bad:
                raise _bad_line(placed, reader.inputs)
            rejects.append(placed)
        lines[piece.first_file] += piece.n_lines
        pieces.append(piece)
        done += piece.input_bytes
        documents += len(piece.sizes)
        tokens += int(piece.sizes.sum(dtype="int64"))
        report(Progress("encode", done, total, documents, tokens, len(rejects)))
    return _make_index(pieces, reader.inputs), rejects


def _bad_line(reject: Reject, inputs: list[InputFile]) -> DataError:
    skip = "on_error: skip leaves such lines out"
    return DataError(
        reject.reason,
        where=f"{inputs[reject.file].name}:{reject.line}",
        hint=f"{reject.hint}; or {skip}" if reject.hint else skip,
    )


@contextmanager
def _chunk_encoder(
    work: ChunkWork, folder: Path, number: int
) -> Iterator[Callable[[Chunk], Piece]]:
    """Provide the work of one process: chunk in, piece out, tokens into its own spool file."""
    with writing(folder):
        spool = SpoolWriter(spool_path(folder, number))
        masks = SpoolWriter(mask_spool_path(folder, number))

    def encode_chunk(chunk: Chunk) -> Piece:
        encoded = work(chunk)
        with writing(folder):
            position = spool.append(encoded.tokens)
            if encoded.mask is not None:
                masks.append(encoded.mask)
        return Piece(
            first_file=chunk.first_file,
            files=encoded.files,
            offsets=encoded.offsets,
            sizes=encoded.sizes,
            spool=number,
            position=position,
            rejects=encoded.rejects,
            n_lines=encoded.n_lines,
            input_bytes=chunk.input_bytes,
        )

    with closing(spool), closing(masks):
        yield encode_chunk


def _make_index(pieces: list[Piece], inputs: list[InputFile]) -> Index:
    """Join the pieces of a corpus into one index."""
    files = _joined([piece.files for piece in pieces], np.uint32)
    ids = DocumentIds(
        sources=np.array([file.source for file in inputs], np.uint64)[files],
        files=np.array([file.number for file in inputs], np.uint64)[files],
        offsets=_joined([piece.offsets for piece in pieces], np.int64).astype(np.uint64),
    )
    counts = [len(piece.sizes) for piece in pieces]
    starts = [piece.position + np.cumsum(piece.sizes, dtype=np.int64) for piece in pieces]
    sizes = _joined([piece.sizes for piece in pieces], np.int32)
    places = Places(
        spools=np.repeat(np.array([piece.spool for piece in pieces], np.uint16), counts),
        starts=_joined(starts, np.int64) - sizes,
        sizes=sizes,
    )
    return Index(ids, places)


def _joined(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate([np.empty(0, dtype), *parts])


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error that says where.

    Raises:
        SetupError: the body raised OSError: no space, no permission, a limit.
    """
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"cannot write the output: {error.strerror or error}",
            where=str(path),
            hint="the folder must be writable, with room for twice the size of the output",
        ) from error
