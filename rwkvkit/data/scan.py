"""The fast way through jsonl: one pass from lines to documents, without an object a line.

It knows the usual line: an object, one of whose values is the text, a string. Whatever else a line
may be, valid or not, is *odd*, and left to ``documents``: no object, the text twice or no string,
half a surrogate pair, NaN, names with escapes or outside ASCII.
"""

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.forms import SEAM
from rwkvkit.data.json_bytes import (
    CLOSE,
    COLON,
    COMMA,
    NEWLINE,
    OPEN,
    PLAIN,
    QUOTE,
    SLACK,
    is_utf8,
    same,
    space,
    string,
    value,
)
from rwkvkit.tokenizer.jit import compiled

_SEAM = SEAM[0]
_ODD, _BLANK, _DOCUMENT = range(3)


class Scan:
    """Reads lines from the front of a chunk; stops before each odd one, until told what it is.

    Attributes:
        at: where the next line starts; the length of the data when all are read.
        n_lines: lines read.
        n_documents: documents found.

    Args:
        data: whole lines, of which only the last may lack its newline. Every carriage return in
            it stands before a newline.
        field: name of the column that is the text.
    """

    def __init__(self, data: bytes, field: str) -> None:
        # The loops stop at a newline, so a line without one is not for them.
        stop = data.rfind(b"\n") + 1
        # They look beyond their text, so the last lines are read from a copy.
        cut = data.rfind(b"\n", 0, max(len(data) - SLACK, 0)) + 1
        text = np.frombuffer(data, np.uint8)
        last = np.empty(stop - cut + SLACK, np.uint8)
        last[: stop - cut] = text[cut:stop]
        last.setflags(write=False)
        self._texts = [
            (first, lines, bool(is_utf8(lines)))
            for first, lines in ((0, text[:cut]), (cut, last[: stop - cut]))
        ]
        self._field = np.frombuffer(field.encode(), np.uint8)
        self._out = np.empty(len(data) + SLACK, np.uint8)
        most = len(data) // len(b'{"":""}\n' + field.encode()) + 1  # the last has no newline
        self._stops = np.empty(most, np.int64)
        self._offsets = np.empty(most, np.int64)
        self.at = self._written = self.n_documents = self.n_lines = 0

    def run(self) -> None:
        """Read on, to the end or to the next odd line."""
        for first, lines, is_valid in self._texts:
            if not first <= self.at < first + len(lines):
                continue
            at, self._written, self.n_documents, self.n_lines = _lines(
                lines,
                is_valid,
                first,
                self._field,
                self._out,
                self._stops,
                self._offsets,
                self.at - first,
                self._written,
                self.n_documents,
                self.n_lines,
            )
            self.at = first + at
            if at < len(lines):
                break

    def skip(self, size: int, content: bytes | None) -> None:
        """Go on behind an odd line.

        Args:
            size: bytes of the line, its newline included.
            content: the document on it, or None if it gives none.
        """
        if content is not None:
            stop = self._written + len(content)
            self._out[self._written : stop] = np.frombuffer(content, np.uint8)
            self._out[stop] = _SEAM
            self._written = stop + 1
            self._offsets[self.n_documents] = self.at
            self._stops[self.n_documents] = self._written
            self.n_documents += 1
        self.n_lines += 1
        self.at += size

    def joined(self) -> NDArray[np.uint8]:
        """Return the documents, each followed by 0xFF, uint8 [bytes]."""
        return self._out[: self._written]

    def stops(self) -> NDArray[np.int64]:
        """Return where each document ends in ``joined``, its 0xFF included, [documents]."""
        return self._stops[: self.n_documents]

    def offsets(self) -> NDArray[np.int64]:
        """Return where the line of each document starts in the data, [documents]."""
        return self._offsets[: self.n_documents]


@compiled
def _lines(text, is_valid, first, field, out, stops, offsets, at, o, documents, lines):  # type: ignore[no-untyped-def]
    """Read lines of ``text`` from ``at``, which all end in a newline; see ``Scan``."""
    while at < len(text):
        after, end, kind = _line(text, is_valid, at, field, out, o)
        if kind == _ODD:
            break
        if kind == _DOCUMENT:
            out[end] = _SEAM
            o = end + 1
            stops[documents] = o
            offsets[documents] = first + at
            documents += 1
        lines += 1
        at = after
    return at, o, documents, lines


@compiled
def _line(text, is_valid, at, field, out, o):  # type: ignore[no-untyped-def]
    """Read a line and write its document to ``out`` from ``o``.

    Returns:
        Where the next line starts, where the document ends, and what kind of line it is.
    """
    at = space(text, at)
    if text[at] == NEWLINE:
        return at + 1, o, _BLANK
    if text[at] != OPEN:
        return at, o, _ODD
    end = -1
    while True:
        at = space(text, at + 1)
        if text[at] != QUOTE:
            return at, o, _ODD
        start = at + 1
        at = start
        while PLAIN[text[at]]:
            at += 1
        if text[at] != QUOTE:
            return at, o, _ODD
        is_text = at - start == len(field) and same(text, start, field)
        at = space(text, at + 1)
        if text[at] != COLON:
            return at, o, _ODD
        at = space(text, at + 1)
        if is_text:
            if text[at] != QUOTE or end >= 0:
                return at, o, _ODD
            at, end = string(text, at + 1, out, o, is_valid)
        else:
            # The strings in it go behind the document, where the next one will overwrite them.
            at = value(text, at, out, o if end < 0 else end, is_valid)
        if at < 0:
            return at, o, _ODD
        at = space(text, at)
        if text[at] == CLOSE:
            break
        if text[at] != COMMA:
            return at, o, _ODD
    at = space(text, at + 1)
    if end < 0 or text[at] != NEWLINE:
        return at, o, _ODD
    return at + 1, end, _DOCUMENT
