"""Read the documents of a chunk, exactly as a strict reader in plain Python would, but faster."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import orjson
from numpy.typing import NDArray

from rwkvkit.data.chat import ChatForm
from rwkvkit.data.chunks import Chunk, opened
from rwkvkit.data.forms import SEAM, BadLine, Column, Form, Text, json_type
from rwkvkit.data.scan import Scan
from rwkvkit.data.unpack import decompressed

_NEWLINE = re.compile(rb"\r\n?|\n")
_BYTE_ORDER_MARK = "\ufeff"
_FEW = 16  # odd lines after which a chunk of them is read line by line


@dataclass(frozen=True)
class Reject:
    """A line (or text file) that gives no document, and why.

    Attributes:
        file: index of the file in the list of inputs.
        line: its number, from 1, within the chunk (for a text file: within the file).
        reason: what is wrong.
        hint: what to do about it, or None.
        raw: the line as it stands, undecodable bytes replaced.
    """

    file: int
    line: int
    reason: str
    hint: str | None
    raw: str


class JoinedTexts(Sequence[bytes]):
    """Texts that lie in one buffer, each followed by ``rwkvkit.data.forms.SEAM``.

    Attributes:
        joined: the buffer, uint8 [bytes].
        stops: where each ends in it, the byte after it included, int64 [texts].
    """

    def __init__(self, joined: NDArray[np.uint8], stops: NDArray[np.int64]) -> None:
        self.joined = joined
        self.stops = stops

    def __len__(self) -> int:
        return len(self.stops)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> list[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | list[bytes]:
        if isinstance(i, slice):
            return [self[number] for number in range(len(self))[i]]
        i = range(len(self))[i]
        start = int(self.stops[i - 1]) if i else 0
        return self.joined[start : int(self.stops[i]) - 1].tobytes()


@dataclass
class Documents:
    """What a chunk holds; nothing but the bad line where reading stopped at one.

    Attributes:
        texts: the documents, UTF-8; segments joined by ``rwkvkit.data.forms.SEAM``.
        marks: for each document a byte a segment, 1 where it counts in the loss; None where every
            document is one segment, of which its file's ``loss`` says whether it counts.
        files: index of each document's file in the list of inputs.
        offsets: byte offset in the file at which each document's line or text starts; of a table,
            the number of its row.
        rejects: the bad lines; at most one unless they are to be skipped.
        n_lines: lines or rows in the chunk, 0 for text files of a document each.
    """

    texts: list[bytes] | JoinedTexts = field(default_factory=list)
    files: list[int] | NDArray[np.int64] = field(default_factory=list)
    offsets: list[int] | NDArray[np.int64] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    n_lines: int = 0
    marks: list[bytes] | None = None

    def only(self, which: NDArray[np.bool_]) -> "Documents":
        """Return some of the documents, with all that is not about one of them."""
        numbers = np.flatnonzero(which)
        return replace(
            self,
            texts=[self.texts[i] for i in numbers.tolist()],
            files=np.asarray(self.files, np.int64)[numbers],
            offsets=np.asarray(self.offsets, np.int64)[numbers],
            marks=None if self.marks is None else [self.marks[i] for i in numbers.tolist()],
        )

    def add(self, text: Text) -> None:
        """Append a document to those of a list."""
        assert isinstance(self.texts, list)
        self.texts.append(text.content)
        if self.marks is not None:
            assert text.marks is not None
            self.marks.append(text.marks)

    def joined(self) -> bytes | NDArray[np.uint8]:
        """Return the texts, each followed by ``rwkvkit.data.forms.SEAM``."""
        if isinstance(self.texts, JoinedTexts):
            return self.texts.joined
        return SEAM.join([*self.texts, b""])

    def text_bytes(self) -> NDArray[np.int64]:
        """Return the bytes of each text, [documents], seams between its segments included."""
        if isinstance(self.texts, JoinedTexts):
            return np.diff(self.texts.stops, prepend=0) - 1
        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))


def read_chunk(chunk: Chunk, *, skip_bad: bool) -> Documents:
    """Return the documents of a chunk.

    Args:
        chunk: what to read.
        skip_bad: collect bad lines and go on; else stop at the first.

    Raises:
        DataError: a file cannot be read.
    """
    if chunk.files[0].format == "text":
        return _read_text_files(chunk, skip_bad)
    assert chunk.data is not None
    return _read_lines(chunk.data, chunk, skip_bad)


def strict_document(line: bytes, form: Form) -> Text | None:
    """Return the document of one jsonl line, or None for a blank one; Python's json decides.

    Raises:
        BadLine: the line holds no document.
    """
    text = _decode(line).strip()
    if not text:
        return None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith(_BYTE_ORDER_MARK):
            raise _byte_order_mark() from error
        raise BadLine(f"broken JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise BadLine(f"broken JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadLine(f"the line is {json_type(record)}, not an object")
    return form.render(record)


def _read_lines(data: bytes, chunk: Chunk, skip_bad: bool) -> Documents:
    lone_returns = b"\r" in data and data.count(b"\r") > data.count(b"\r\n")
    form = chunk.files[0].form
    if isinstance(form, Column) and not lone_returns:
        found = _scan_lines(data, chunk, form, skip_bad)
        if found is not None:
            return found
    lines, starts = _split(data, lone_returns)
    found = Documents(n_lines=len(lines), marks=[] if isinstance(form, ChatForm) else None)
    skipped: list[int] = []
    for number, line in enumerate(lines):
        text = _document(line, form, chunk, number + 1, found.rejects)
        if found.rejects and not skip_bad:
            return Documents(rejects=found.rejects)
        if text is None:
            skipped.append(number)
        else:
            found.add(text)
    found.offsets = chunk.start + np.delete(starts, skipped)
    found.files = np.full(len(found.texts), chunk.first_file)
    return found


def _scan_lines(data: bytes, chunk: Chunk, form: Column, skip_bad: bool) -> Documents | None:
    """Read lines the fast way; None if too many are odd for it."""
    scan = Scan(data, form.name)
    found = Documents()
    n_odd = 0
    scan.run()
    while scan.at < len(data):
        n_odd += 1
        if n_odd > _FEW and 8 * n_odd > scan.n_lines:
            return None
        end = data.find(b"\n", scan.at)
        stop = len(data) if end < 0 else end
        line = data[scan.at : stop]
        text = _document(line, form, chunk, scan.n_lines + 1, found.rejects)
        if found.rejects and not skip_bad:
            return Documents(rejects=found.rejects)
        scan.skip(stop + 1 - scan.at, text.content if text else None)
        scan.run()
    found.texts = JoinedTexts(scan.joined(), scan.stops())
    found.offsets = chunk.start + scan.offsets()
    found.files = np.full(scan.n_documents, chunk.first_file)
    found.n_lines = scan.n_lines
    return found


def _document(
    line: bytes, form: Form, chunk: Chunk, number: int, rejects: list[Reject]
) -> Text | None:
    """Return the document of a line, or None: it is blank, or bad, and then among the rejects."""
    try:
        return form.render(orjson.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, BadLine):
        # orjson refuses, or there is no such string: the strict reader has the last word.
        pass
    try:
        return strict_document(line, form)
    except BadLine as bad:
        raw = line.decode("utf-8", errors="replace")
        rejects.append(Reject(chunk.first_file, number, bad.reason, bad.hint, raw))
        return None


def _split(data: bytes, lone_returns: bool) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the lines and where each starts; lines end as in Python's text mode.

    A carriage return before the newline stays: to JSON it is white space.
    """
    if lone_returns:
        ends = [match.span() for match in _NEWLINE.finditer(data)]
        starts = np.array([0, *[stop for _, stop in ends]], np.int64)
        stops = [*[start for start, _ in ends], len(data)]
        lines = [data[a:b] for a, b in zip(starts.tolist(), stops, strict=True)]
    else:
        lines = data.split(b"\n")
        lengths = np.fromiter(map(len, lines), np.int64, len(lines))
        starts = np.cumsum(lengths + 1) - lengths - 1
    if not lines[-1]:
        lines.pop()
        starts = starts[:-1]
    return lines, starts


def _read_text_files(chunk: Chunk, skip_bad: bool) -> Documents:
    found = Documents()
    files: list[int] = []
    for number, file in enumerate(chunk.files, chunk.first_file):
        with opened(file) as raw:
            packed = file.compression
            data = b"".join(decompressed(raw, packed)) if packed else raw.read()
        try:
            check_text(data)
        except BadLine as bad:
            line, raw_line = bad_line(data)
            found.rejects.append(Reject(number, line, bad.reason, bad.hint, raw_line))
            if not skip_bad:
                return Documents(rejects=found.rejects)
            continue
        found.add(Text(data))
        files.append(number)
    found.files = files
    found.offsets = [0] * len(files)
    return found


def check_text(data: bytes, *, first: bool = True) -> str:
    """Decode text.

    Args:
        data: UTF-8.
        first: whether a file starts with it.

    Raises:
        BadLine: it is not UTF-8, or starts with a byte order mark.
    """
    text = _decode(data)
    if first and text.startswith(_BYTE_ORDER_MARK):
        raise _byte_order_mark()
    return text


def bad_line(data: bytes) -> tuple[int, str]:
    """Return number and content of the line where decoding fails, the first if it does not."""
    at = 0
    try:
        data.decode()
    except UnicodeDecodeError as error:
        at = error.start
    start = data.rfind(b"\n", 0, at) + 1
    raw = data[start:].partition(b"\n")[0].decode("utf-8", errors="replace")
    return data.count(b"\n", 0, at) + 1, raw


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise BadLine(
            f"invalid UTF-8: {error.reason}, byte 0x{data[error.start]:02x} at column {column}",
            "convert the file to UTF-8",
        ) from error


def _byte_order_mark() -> BadLine:
    return BadLine("the file starts with a byte order mark", "save it as UTF-8 without one")
