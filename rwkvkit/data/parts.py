"""The result of a task on disk: tokens, their index, and a record that vouches for both.

A part is a few files of one stem in the folder of a build. Each is written beside its place and
renamed, the record last, so a part either has a record or is made again. Writers of the same part
may run at the same time: they write the same bytes.

The index file holds one column after another: offsets (int64), hashes (uint64, two a document, if
the chain needs them), files (uint32), sizes (int32).
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError

from rwkvkit.config import Config
from rwkvkit.data.chunk_work import EncodedChunk
from rwkvkit.data.documents import Reject

TOKENS = "tokens"
MASK = "mask"
_INDEX = "index"
_REJECTS = "rejects"
_RECORD = "json"

_SLICE = 1 << 18  # documents of which the index is in memory at once
_HELD = 1 << 20  # bytes of a column that a writer keeps in memory
_COPIED = 1 << 20  # bytes that are copied, or checked, at once


class PartRecord(Config):
    """What a part holds, and the checksums of its files."""

    dtype: str
    """Type of the tokens."""
    documents: int
    """Documents in it."""
    tokens: int
    """Tokens in it, the 0 at the end of each document included."""
    lines: int
    """Lines the task read."""
    filtered: int
    """Documents that filters dropped."""
    left_out: int
    """Documents outside the fraction of their source."""
    rejected: int
    """Lines that gave no document."""
    hashed: bool
    """Whether the index has content hashes."""
    inputs: dict[str, str]
    """SHA-256 of every input file the task read whole, by index in the list of inputs."""
    checksums: dict[str, str]
    """XXH3 (64 bits) of the part's own files, by suffix; an empty file is not there. It finds what
    a dead machine did not store; what the manifest vouches for has SHA-256."""


class Index(NamedTuple):
    """Documents that follow one another in a part.

    Attributes:
        offsets: byte offset of each one's line in its file, int64 [documents].
        hashes: of each one's content, uint64 [documents, 2], if the part has them.
        files: index of each one's file in the list of inputs, uint32 [documents].
        sizes: tokens in each, the ending 0 included, int32 [documents].
    """

    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64] | None
    files: NDArray[np.uint32]
    sizes: NDArray[np.int32]


@dataclass(frozen=True)
class Part:
    """A finished part.

    Attributes:
        folder: where it lies.
        number: of its task.
        record: what it holds.
    """

    folder: Path
    number: int
    record: PartRecord

    def index(self) -> Iterator[Index]:
        """Yield the index of the documents, of many at a time.

        Raises:
            OSError: it cannot be read.
        """
        count = self.record.documents
        for first in range(0, count, _SLICE):
            read = partial(self._column, first=first, count=min(_SLICE, count - first))
            offsets = read(np.int64, 0)
            hashes = read(np.uint64, 8, 2).reshape(-1, 2) if self.record.hashed else None
            before = 24 if self.record.hashed else 8
            yield Index(offsets, hashes, read(np.uint32, before), read(np.int32, before + 4))

    def path(self, suffix: str) -> Path:
        """Return where a file of the part lies."""
        return part_path(self.folder, self.number, suffix)

    def rejects(self) -> Iterator[Reject]:
        """Yield the lines that gave no document, numbered from the first line of the task."""
        if self.record.rejected:
            with self.path(_REJECTS).open(encoding="utf-8") as lines:
                for line in lines:
                    yield Reject(**json.loads(line))

    def _column(
        self, dtype: type, before: int, width: int = 1, *, first: int, count: int
    ) -> NDArray[Any]:
        """Read a column, from its ``first`` document; ``before`` bytes a document precede it."""
        offset = before * self.record.documents + width * np.dtype(dtype).itemsize * first
        return np.fromfile(self.path(_INDEX), dtype, count * width, offset=offset)


def part_path(folder: Path, number: int, suffix: str) -> Path:
    """Return where a file of a part lies."""
    return folder / f"part-{number:06d}.{suffix}"


def read_record(folder: Path, number: int) -> PartRecord | None:
    """Return the record of a part, or None if there is none that can be read."""
    try:
        return PartRecord.model_validate_json(part_path(folder, number, _RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def find_part(folder: Path, number: int) -> Part | None:
    """Return a part if it is there and its files are what its record says, else None."""
    record = read_record(folder, number)
    if record is None:
        return None
    try:
        for suffix, checksum in record.checksums.items():
            if _checksum(part_path(folder, number, suffix)) != checksum:
                return None
    except OSError:
        return None
    return Part(folder, number, record)


class PartWriter:
    """Writes a part from encoded chunks; without ``finish`` the ``with`` block leaves nothing.

    Memory use does not depend on the size: a compressed file is one part, however large.

    Raises:
        OSError: the part cannot be written.
    """

    def __init__(self, folder: Path, number: int, *, hashed: bool) -> None:
        self._folder = folder
        self._number = number
        self._hashed = hashed
        self._sinks: dict[str, _Sink] = {}
        self._columns = [
            SpooledTemporaryFile(_HELD, dir=str(folder))  # noqa: SIM115
            for _ in Index._fields
        ]
        self._dtype = np.dtype(np.uint16)
        self.documents = self.tokens = self.lines = 0
        self.filtered = self.left_out = self.rejected = 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks.values():
            sink.discard()
        for column in self._columns:
            column.close()

    def add(self, encoded: EncodedChunk) -> None:
        """Append the documents of a chunk."""
        hashes = _hashes(encoded) if self._hashed else None
        index = Index(encoded.offsets, hashes, encoded.files, encoded.sizes)
        for column, values in zip(self._columns, index, strict=True):
            if values is not None:
                column.write(values.data)
        self._dtype = encoded.tokens.dtype
        self._write(TOKENS, encoded.tokens)
        if encoded.mask is not None:
            self._write(MASK, encoded.mask)
        for reject in encoded.rejects:
            line = asdict(reject) | {"line": self.lines + reject.line}
            self._write(_REJECTS, json.dumps(line).encode() + b"\n")
        self.documents += len(encoded.sizes)
        self.tokens += len(encoded.tokens)
        self.lines += encoded.n_lines
        self.filtered += encoded.filtered
        self.left_out += encoded.left_out
        self.rejected += len(encoded.rejects)

    def finish(self, inputs: dict[int, str]) -> Part:
        """Put the part in its place; ``inputs`` are the hashes of the files read whole."""
        for column in self._columns:
            column.seek(0)
            while block := column.read(_COPIED):
                self._write(_INDEX, block)
        checksums = {
            suffix: sink.keep(part_path(self._folder, self._number, suffix))
            for suffix, sink in self._sinks.items()
        }
        record = PartRecord(
            dtype=self._dtype.name,
            documents=self.documents,
            tokens=self.tokens,
            lines=self.lines,
            filtered=self.filtered,
            left_out=self.left_out,
            rejected=self.rejected,
            hashed=self._hashed,
            inputs={str(i): digest for i, digest in inputs.items()},
            checksums=checksums,
        )
        with contextlib.closing(_Sink(self._folder)) as sink:
            sink.write(record.model_dump_json().encode())
            sink.keep(part_path(self._folder, self._number, _RECORD))
        return Part(self._folder, self._number, record)

    def _write(self, suffix: str, data: NDArray[Any] | bytes) -> None:
        view = memoryview(data)  # type: ignore[arg-type]  # an array is a buffer
        if not view.nbytes:
            return
        if suffix not in self._sinks:
            self._sinks[suffix] = _Sink(self._folder)
        self._sinks[suffix].write(view.cast("B"))


class _Sink:
    """A new file under a name of its own, with a checksum of what is written.

    It is not flushed to disk: what a dead machine loses does not fit its record, and is made again.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor, name = tempfile.mkstemp(prefix="new-", dir=folder)
        self._path = Path(name)
        self._checksum = xxhash.xxh3_64()

    def write(self, data: memoryview | bytes) -> None:
        self._checksum.update(data)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def keep(self, path: Path) -> str:
        """Put the file in its place and return its checksum."""
        self._path.replace(path)
        return self._checksum.hexdigest()

    def close(self) -> None:
        os.close(self._descriptor)

    def discard(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    checksum = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(_COPIED):
            checksum.update(block)
    return checksum.hexdigest()


def _hashes(encoded: EncodedChunk) -> NDArray[np.uint64]:
    """Return 128 bits for the tokens of each document, [documents, 2]."""
    data = encoded.tokens.data.cast("B") if len(encoded.tokens) else b""
    stops = (np.cumsum(encoded.sizes, dtype=np.int64) * encoded.tokens.itemsize).tolist()
    digests = [
        hashlib.blake2b(data[start:stop], digest_size=16).digest()
        for start, stop in zip([0, *stops], stops, strict=False)
    ]
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
