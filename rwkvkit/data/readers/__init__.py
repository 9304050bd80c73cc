"""Inputs that are neither plain lines nor a document a file: tables, and text with separators."""

from collections.abc import Iterator

from rwkvkit.data.chunks import Chunk
from rwkvkit.data.documents import Documents
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.readers import separated, tables


def file_chunks(
    number: int,
    file: InputFile,
    chunk_bytes: int,
    sha256: dict[int, str],
    span: tuple[int, int] | None = None,
) -> Iterator[Chunk]:
    """Iterate over the chunks of a file with ``has_own_reader``; each carries its data.

    Args:
        number: index of the file in the list of inputs.
        file: the file.
        chunk_bytes: about how much text a chunk holds; the documents do not depend on it.
        sha256: receives the digest of the file under its number when all of it has been read.
        span: of a parquet file, only the groups of rows that start in these bytes.

    Raises:
        DataError: the file cannot be read, is damaged, or lacks a column.
        SetupError: a package that it needs is not installed.
    """
    if file.separator:
        return separated.chunks(number, file, chunk_bytes, sha256)
    return tables.chunks(number, file, chunk_bytes, sha256, span)


def read_file_chunk(chunk: Chunk, *, skip_bad: bool) -> Documents:
    """Return the documents of such a chunk; see ``rwkvkit.data.documents.read_chunk``."""
    reader = separated.documents if chunk.files[0].separator else tables.documents
    return reader(chunk, skip_bad)
