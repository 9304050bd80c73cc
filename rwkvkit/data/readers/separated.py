"""Text files that hold several documents, with a separator between them."""

import hashlib
from collections.abc import Iterator

from rwkvkit.data.chunks import Chunk, opened
from rwkvkit.data.documents import Documents, Reject, bad_line, check_text
from rwkvkit.data.forms import BadLine, Text
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.unpack import decompressed

_READ = 256 << 10


def chunks(
    number: int, file: InputFile, chunk_bytes: int, sha256: dict[int, str]
) -> Iterator[Chunk]:
    """Cut a file after separators; see ``file_chunks``."""
    assert file.separator is not None
    digest = hashlib.sha256()
    held = bytearray()
    wanted = max(chunk_bytes, 1)
    start = told = 0
    with opened(file) as raw:
        if file.compression:
            blocks = decompressed(raw, file.compression, digest.update)
        else:
            blocks = iter(lambda: raw.read(_READ), b"")
        for block in blocks:
            if not file.compression:
                digest.update(block)
            held += block
            if len(held) < wanted:
                continue
            # Separators are found from the left, always from the start of a document, so that the
            # pieces are those of the whole file.
            rest = len(held.split(file.separator)[-1])
            if rest == len(held):
                wanted = 2 * len(held)
                continue
            cut = len(held) - rest
            at = raw.tell()
            yield Chunk(number, (file,), start, start + cut, bytes(held[:cut]), at - told)
            del held[:cut]
            start, told, wanted = start + cut, at, max(chunk_bytes, 1)
    yield Chunk(number, (file,), start, start + len(held), bytes(held), file.size - told)
    sha256[number] = digest.hexdigest()


def documents(chunk: Chunk, skip_bad: bool) -> Documents:
    """Return what stands between separators and is not blank, as it stands."""
    separator = chunk.files[0].separator
    assert separator is not None
    assert chunk.data is not None
    found = Documents(n_lines=chunk.data.count(b"\n"))
    offsets: list[int] = []
    at = 0
    for piece in chunk.data.split(separator):
        try:
            text = check_text(piece, first=chunk.start + at == 0)
        except BadLine as bad:
            line, raw = bad_line(piece)
            line += chunk.data.count(b"\n", 0, at)
            found.rejects.append(Reject(chunk.first_file, line, bad.reason, bad.hint, raw))
            if not skip_bad:
                return Documents(rejects=found.rejects)
        else:
            if text.strip():
                found.add(Text(piece))
                offsets.append(chunk.start + at)
        at += len(piece) + len(separator)
    found.offsets = offsets
    found.files = [chunk.first_file] * len(offsets)
    return found
