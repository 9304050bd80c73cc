"""Cut the input files into chunks of whole documents that workers can read on their own."""

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import zstandard

from rwkvkit.data import remote
from rwkvkit.data.inputs import InputFile, unreadable
from rwkvkit.data.tasks import Task
from rwkvkit.data.unpack import decompressed
from rwkvkit.errors import DataError

CHUNK_BYTES = 4 << 20  # smaller ones cost more than their text, larger ones leave the cache
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
        data: the lines, or what another reader made of the file; None for text files.
        input_bytes: bytes on disk this chunk stands for, for the progress.
    """

    first_file: int
    files: tuple[InputFile, ...]
    start: int
    stop: int
    data: bytes | None
    input_bytes: int


def task_chunks(
    task: Task, chunk_bytes: int, hashed: dict[int, str] | None = None
) -> Iterator[Chunk]:
    """Iterate over the chunks of a task; a thread reads ahead where it must decompress.

    Args:
        task: what to cut.
        chunk_bytes: bytes of text in a chunk, at least; the documents do not depend on it.
        hashed: receives the SHA-256 of every file that the task covers whole, by index.

    Raises:
        DataError: a file cannot be read, or its compressed data is damaged.
    """
    hashed = {} if hashed is None else hashed
    file = task.files[0]
    if file.has_own_reader:
        from rwkvkit.data.readers import file_chunks

        number, span = task.first_file, None if task.whole else (task.start, task.stop)
        return _ahead(lambda: file_chunks(number, file, chunk_bytes, hashed, span), depth=2)
    if file.format == "text":
        return _text_chunks(task, chunk_bytes, hashed)
    if file.compression:
        return _ahead(lambda: _decompressed_chunks(task, chunk_bytes, hashed), depth=2)
    return _line_chunks(task, chunk_bytes, hashed)


def count_lines(file: InputFile, start: int, stop: int) -> int:
    """Return how many lines of a plain jsonl file start in a range that starts with a line.

    Raises:
        DataError: the file cannot be read.
    """
    count = 0
    last = b""
    with opened(file) as raw:
        raw.seek(start)
        for at in range(start, stop, _READ):
            block = last + raw.read(min(_READ, stop - at))
            # A carriage return at the border may belong to a newline after it.
            last = b"\r" if block.endswith(b"\r") else b""
            block = block[: len(block) - len(last)]
            count += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
    return count + len(last)


def hash_file(file: InputFile, tell: Callable[[], object] = bool) -> str:
    """Return the SHA-256 of an input file.

    Args:
        file: to read.
        tell: called now and then, while a file is read.

    Raises:
        DataError: it cannot be read.
    """
    if file.dataset is not None:
        from rwkvkit.data.readers import file_chunks

        hashed: dict[int, str] = {}
        for _ in file_chunks(0, file, CHUNK_BYTES, hashed):
            pass
        return hashed[0]
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with opened(file) as raw:
        while size := raw.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:size])
            tell()
    return digest.hexdigest()


def first_line(raw: BinaryIO, task: Task) -> int:
    """Return where the first line of a task starts, or the next one's, in a plain jsonl file."""
    return _next_line(raw, task.start, task.files[0].size) if task.start else 0


def _text_chunks(task: Task, chunk_bytes: int, hashed: dict[int, str]) -> Iterator[Chunk]:
    first = last = size = 0

    def chunk() -> Chunk:
        files = task.files[first:last]
        return Chunk(task.first_file + first, files, 0, size, None, input_bytes=size)

    for file in task.files:
        if last > first and size >= chunk_bytes:
            yield chunk()
            first, size = last, 0
        hashed[task.first_file + last] = hash_file(file)
        last += 1
        size += file.size
    yield chunk()


def _line_chunks(task: Task, chunk_bytes: int, hashed: dict[int, str]) -> Iterator[Chunk]:
    """Cut a range of a plain jsonl file after newlines."""
    file = task.files[0]
    digest = hashlib.sha256() if task.whole else None
    with opened(file) as raw:
        start, told = first_line(raw, task), task.start
        raw.seek(start)
        while start < task.stop:
            # At least one byte, however small the chunks: a cut always moves on.
            wanted = min(max(chunk_bytes, 1), task.stop - start)
            data = raw.read(wanted)
            if len(data) < wanted:
                raise changed(file)
            if not data.endswith(b"\n"):
                data += raw.readline(file.size - start - wanted)
            if digest:
                digest.update(data)
            stop = start + len(data)
            done = min(stop, task.stop)
            yield Chunk(task.first_file, task.files, start, stop, data, input_bytes=done - told)
            start, told = stop, done
    if digest:
        hashed[task.first_file] = digest.hexdigest()


def _decompressed_chunks(task: Task, chunk_bytes: int, hashed: dict[int, str]) -> Iterator[Chunk]:
    """Decompress a jsonl file and cut the stream after newlines."""
    file = task.files[0]
    assert file.compression is not None
    digest = hashlib.sha256()
    with opened(file) as raw:
        parts: list[bytes] = []
        held = start = told = 0
        for part in decompressed(raw, file.compression, digest.update):
            parts.append(part)
            held += len(part)
            cut = part.rfind(b"\n") + 1
            if held < chunk_bytes or not cut:
                continue
            data = b"".join([*parts[:-1], part[:cut]])
            stop, at = start + len(data), raw.tell()
            yield Chunk(task.first_file, task.files, start, stop, data, input_bytes=at - told)
            parts, held = [part[cut:]], len(part) - cut
            start, told = stop, at
        if held:
            data = b"".join(parts)
            stop, left = start + len(data), file.size - told
            yield Chunk(task.first_file, task.files, start, stop, data, input_bytes=left)
    hashed[task.first_file] = digest.hexdigest()


def changed(file: InputFile) -> DataError:
    """Return the error for a file that is not what it was when the build began."""
    return DataError(
        "the file changed while it was read",
        where=file.name,
        hint="run the command again when nothing writes to it",
    )


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
        raise unreadable(file.name, error) from error


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
