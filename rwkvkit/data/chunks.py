"""Cut the input files into chunks of whole documents that workers can read on their own."""

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import zstandard

from rwkvkit.data import remote
from rwkvkit.data.sources import Compression, InputFile
from rwkvkit.errors import DataError

CHUNK_BYTES = 1 << 20  # what parsing and encoding do to it stays in the processor's cache
_READ = 128 << 10
_T = TypeVar("_T")


@dataclass(frozen=True)
class Chunk:
    """A run of whole lines of one jsonl file, of rows of a table, or of whole text files.

    Attributes:
        first_file: index of the (first) file in the list of inputs.
        files: the file, or the text files that follow one another.
        start: offset of the first byte in the (decompressed) file; of a table, the first row.
        stop: offset after the last byte, or the row after the last.
        data: the bytes, if reading the file gave them; else the worker reads them.
        input_bytes: bytes on disk this chunk stands for, for the progress.
    """

    first_file: int
    files: tuple[InputFile, ...]
    start: int
    stop: int
    data: bytes | None
    input_bytes: int


class ChunkReader:
    """Iterates over the chunks of all inputs, in order, and hashes the files on the way.

    A thread of its own reads ahead by a few chunks, so that decompression and hashing overlap with
    what is done with them.

    Attributes:
        inputs: the files, in order.
        sha256: digests of the files read to their end so far, by index.
    """

    def __init__(self, inputs: list[InputFile], chunk_bytes: int = CHUNK_BYTES) -> None:
        self.inputs = inputs
        self._chunk_bytes = chunk_bytes
        self.sha256: dict[int, str] = {}

    def __iter__(self) -> Iterator[Chunk]:
        return _ahead(self._chunks, depth=2)

    def _chunks(self) -> Iterator[Chunk]:
        group: list[int] = []
        from rwkvkit.data.readers import whole_file_chunks

        for i, file in enumerate(self.inputs):
            if file.format == "text" and not file.reads_whole:
                if group and sum(self.inputs[j].size for j in group) >= self._chunk_bytes:
                    yield self._text_chunk(group)
                    group = []
                self.sha256[i] = hash_file(file)
                group.append(i)
                continue
            if group:
                yield self._text_chunk(group)
                group = []
            if file.reads_whole:
                yield from whole_file_chunks(i, file, self._chunk_bytes, self.sha256)
            else:
                yield from self._blocks(i) if file.compression else self._ranges(i)
        if group:
            yield self._text_chunk(group)

    def _text_chunk(self, group: list[int]) -> Chunk:
        files = tuple(self.inputs[i] for i in group)
        size = sum(file.size for file in files)
        return Chunk(group[0], files, 0, size, None, input_bytes=size)

    def _ranges(self, i: int) -> Iterator[Chunk]:
        """Cut a plain jsonl file after newlines; the workers read the pieces."""
        file = self.inputs[i]
        digest = hashlib.sha256()
        with opened(file) as raw:
            start = 0
            while start < file.size:
                # At least one byte, however small the chunks: a cut always moves on.
                stop = _next_line(raw, start + max(self._chunk_bytes, 1), file.size)
                raw.seek(start)
                left = stop - start
                while left and (block := raw.read(min(left, 1 << 20))):
                    digest.update(block)
                    left -= len(block)
                yield Chunk(i, (file,), start, stop, None, input_bytes=stop - start)
                start = stop
        self.sha256[i] = digest.hexdigest()

    def _blocks(self, i: int) -> Iterator[Chunk]:
        """Decompress a jsonl file and cut the stream after newlines."""
        file = self.inputs[i]
        assert file.compression is not None
        digest = hashlib.sha256()
        with opened(file) as raw:
            parts: list[bytes] = []
            held = start = told = 0
            for part in decompressed(raw, file.compression, digest.update):
                parts.append(part)
                held += len(part)
                cut = part.rfind(b"\n") + 1
                if held < self._chunk_bytes or not cut:
                    continue
                data = b"".join([*parts[:-1], part[:cut]])
                at = raw.tell()
                yield Chunk(i, (file,), start, start + len(data), data, input_bytes=at - told)
                parts, held = [part[cut:]], len(part) - cut
                start += len(data)
                told = at
            if held:
                data = b"".join(parts)
                size = file.size - told
                yield Chunk(i, (file,), start, start + len(data), data, input_bytes=size)
        self.sha256[i] = digest.hexdigest()


def hash_file(file: InputFile) -> str:
    """Return the SHA-256 of an input file.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    with opened(file) as raw:
        while block := raw.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def opened(file: InputFile) -> Iterator[BinaryIO]:
    """Open an input file; whatever fails while reading it becomes a DataError that names it."""
    try:
        far = remote.is_remote(file.path)
        with remote.opened(file.path) if far else Path(file.path).open("rb") as raw:
            yield raw
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"the compressed data is damaged or cut off: {error}",
            where=file.name,
            hint="fetch or compress the file again",
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}",
            where=file.name,
            hint="check that the file exists and that you may read it",
        ) from error


def decompressed(
    raw: BinaryIO, compression: Compression, seen: Callable[[bytes], object] = bytes
) -> Iterator[bytes]:
    """Yield the content of a compressed stream; ``seen`` is called with every block read.

    Raises:
        EOFError: the stream ends inside the compressed data.
        zlib.error, zstandard.ZstdError: it is damaged.
    """
    decoder: Any = None
    while block := raw.read(_READ):
        seen(block)
        while block:
            if decoder is None:  # a file may be several streams, one after another
                if compression == "gzip":
                    block = block.lstrip(b"\0")  # padding
                    decoder = zlib.decompressobj(wbits=31) if block else None
                else:
                    decoder = zstandard.ZstdDecompressor().decompressobj()
                continue
            yield decoder.decompress(block)
            block = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = None
    if decoder is not None:
        raise EOFError("the file ends too early")


def _next_line(raw: BinaryIO, at: int, size: int) -> int:
    """Return the first start of a line at or after ``at``, or the size of the file."""
    at -= 1
    while at + 1 < size:
        raw.seek(at)
        block = raw.read(min(_READ, size - at))
        if not block:
            break
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return size


def _ahead(make: Callable[[], Iterator[_T]], depth: int) -> Iterator[_T]:
    """Iterate in a thread, ``depth`` items ahead; it ends when the caller stops iterating."""
    items: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: _T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                items.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in make():
                put(item, None)
                if stopped.is_set():
                    return
            put(None, None)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=produce, name="rwkvkit-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
