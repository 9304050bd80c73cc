"""The fast way through jsonl: one pass from lines to documents, without an object a line.

It knows the usual line: an object whose values are strings, numbers, true, false and null, one of
them the text. Whatever else a line may be, valid or not, is *odd*, and left to ``documents``.
"""

import numpy as np
from numpy.typing import NDArray

from rwkvkit.tokenizer.jit import compiled

_NEWLINE, _TAB, _RETURN, _SPACE, _QUOTE, _BACKSLASH = b'\n\t\r "\\'
_OPEN, _CLOSE, _COLON, _COMMA, _LOWER_U, _MINUS, _PLUS, _POINT, _ZERO, _NINE = b"{}:,u-+.09"
_CONTINUATION = 0x80  # bits 6 and 7 of every byte of a UTF-8 sequence but the first
_SEAM = 0xFF
_ODD, _BLANK, _DOCUMENT = range(3)
_LONGEST_NUMBER = 300  # Python refuses integers of some thousand digits

_1 = np.uint64(1)  # numba makes a float of an uint64 and a bare number
_2 = np.uint64(2)

_PLAIN = np.zeros(256, np.bool_)  # bytes that stand for themselves in a string
_PLAIN[0x20:0x80] = True
_PLAIN[[_QUOTE, _BACKSLASH]] = False
_ESCAPES = np.zeros(256, np.uint8)
_ESCAPES[np.frombuffer(b'"\\/bfnrt', np.uint8)] = np.frombuffer(b'"\\/\b\f\n\r\t', np.uint8)
_HEX = np.full(256, -1, np.int64)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)
_TRUE, _FALSE, _NULL = (np.frombuffer(word, np.uint8) for word in (b"true", b"false", b"null"))


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
        self._text = np.frombuffer(data, np.uint8)
        # The loops stop at a newline, so a line without one is not for them.
        self._complete = self._text[: data.rfind(b"\n") + 1]
        self._field = np.frombuffer(field.encode(), np.uint8)
        self._out = np.empty(len(data) + 1, np.uint8)
        most = data.count(b"\n") + 1
        self._stops = np.empty(most, np.int64)
        self._offsets = np.empty(most, np.int64)
        self.at = self._written = self.n_documents = self.n_lines = 0

    def run(self) -> None:
        """Read on, to the end or to the next odd line."""
        self.at, self._written, self.n_documents, self.n_lines = _lines(
            self._complete,
            self._field,
            self._out,
            self._stops,
            self._offsets,
            self.at,
            self._written,
            self.n_documents,
            self.n_lines,
        )

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
def _lines(text, field, out, stops, offsets, at, o, documents, lines):  # type: ignore[no-untyped-def]
    """Read lines of ``text`` from ``at``, which all end in a newline; see ``Scan``."""
    while at < len(text):
        after, end, kind = _line(text, at, field, out, o)
        if kind == _ODD:
            break
        if kind == _DOCUMENT:
            out[end] = _SEAM
            o = end + 1
            stops[documents] = o
            offsets[documents] = at
            documents += 1
        lines += 1
        at = after
    return at, o, documents, lines


@compiled
def _line(text, at, field, out, o):  # type: ignore[no-untyped-def]
    """Read a line and write its document to ``out`` from ``o``.

    Returns:
        Where the next line starts, where the document ends, and what kind of line it is.
    """
    at = _space(text, at)
    if text[at] == _NEWLINE:
        return at + 1, o, _BLANK
    if text[at] != _OPEN:
        return at, o, _ODD
    end = -1
    while True:
        at = _space(text, at + 1)
        if text[at] != _QUOTE:
            return at, o, _ODD
        start = at + 1
        at = start
        while _PLAIN[text[at]]:
            at += 1
        if text[at] != _QUOTE:
            return at, o, _ODD
        is_text = at - start == len(field) and _same(text, start, field)
        at = _space(text, at + 1)
        if text[at] != _COLON:
            return at, o, _ODD
        at = _space(text, at + 1)
        if text[at] == _QUOTE:
            # Another string goes behind the document, where the next one will overwrite it.
            at, stop = _string(text, at + 1, out, o if end < 0 else end)
            if is_text:
                if end >= 0:  # twice: which one counts is not for this reader to say
                    return at, o, _ODD
                end = stop
        elif is_text:
            return at, o, _ODD
        else:
            at = _scalar(text, at)
        if at < 0:
            return at, o, _ODD
        at = _space(text, at)
        if text[at] == _CLOSE:
            break
        if text[at] != _COMMA:
            return at, o, _ODD
    at = _space(text, at + 1)
    if end < 0 or text[at] != _NEWLINE:
        return at, o, _ODD
    return at + 1, end, _DOCUMENT


@compiled
def _space(text, at):  # type: ignore[no-untyped-def]
    """Return the position of the first byte that is no white space; a newline is none."""
    while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
        at += 1
    return at


@compiled
def _same(text, at, word):  # type: ignore[no-untyped-def]
    """Return whether ``word`` stands at ``at``; it holds no newline, so it ends with the line."""
    i = 0
    while i < len(word) and text[at + i] == word[i]:
        i += 1
    return i == len(word)


@compiled
def _string(text, at, out, o):  # type: ignore[no-untyped-def]
    """Write a string to ``out`` as UTF-8, from the byte after its first quote.

    Returns:
        The position after its last quote, or -1 if it is odd, and where it ends in ``out``.
    """
    while True:
        # Unsigned positions spare the test for negative ones: these loops are more than twice
        # as fast.
        here, there = np.uint64(at), np.uint64(o)
        byte = text[here]
        while True:
            while _PLAIN[byte]:
                out[there] = byte
                there += _1
                here += _1
                byte = text[here]
            if byte != _BACKSLASH:
                break
            meant = _ESCAPES[text[here + _1]]
            if meant == 0:
                break
            out[there] = meant
            there += _1
            here += _2
            byte = text[here]
        at, o = np.int64(here), np.int64(there)

        if byte == _QUOTE:
            return at + 1, o
        if byte != _BACKSLASH:
            size = _sequence(text, at)
            if size == 0:
                return -1, o
            for i in range(size):
                out[o + i] = text[at + i]
            o += size
            at += size
            continue
        if text[at + 1] != _LOWER_U:
            return -1, o
        code = _unit(text, at + 2)
        if code < 0:
            return -1, o
        at += 6
        if 0xD800 <= code < 0xE000:
            if code >= 0xDC00 or text[at] != _BACKSLASH or text[at + 1] != _LOWER_U:
                return -1, o
            low = _unit(text, at + 2)
            if not 0xDC00 <= low < 0xE000:
                return -1, o
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            at += 6
        o = _put(out, o, code)


@compiled
def _unit(text, at):  # type: ignore[no-untyped-def]
    """Return the number that four hexadecimal digits stand for, or -1."""
    code = 0
    for i in range(4):
        digit = _HEX[text[at + i]]
        if digit < 0:  # a newline too: nothing behind it is looked at
            return -1
        code = code << 4 | digit
    return code


@compiled
def _put(out, o, code):  # type: ignore[no-untyped-def]
    """Write a character as UTF-8; return where it ends."""
    if code < 0x80:
        out[o] = code
        return o + 1
    if code < 0x800:
        out[o] = 0xC0 | code >> 6
    else:
        if code < 0x10000:
            out[o] = 0xE0 | code >> 12
        else:
            out[o] = 0xF0 | code >> 18
            o += 1
            out[o] = _CONTINUATION | code >> 12 & 0x3F
        o += 1
        out[o] = _CONTINUATION | code >> 6 & 0x3F
    out[o + 1] = _CONTINUATION | code & 0x3F
    return o + 2


@compiled
def _sequence(text, at):  # type: ignore[no-untyped-def]
    """Return the bytes of the UTF-8 sequence, of two or more, at ``at``; 0 if it is none.

    The ranges are those of table 3-7 of the Unicode standard: nothing overlong, no surrogate,
    nothing above U+10FFFF.
    """
    lead = text[at]
    if lead < 0xC2 or lead > 0xF4:
        return 0
    least = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
    most = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
    if text[at + 1] < least or text[at + 1] > most:
        return 0
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    for i in range(2, size):
        if text[at + i] & 0xC0 != _CONTINUATION:
            return 0
    return size


@compiled
def _scalar(text, at):  # type: ignore[no-untyped-def]
    """Return the position after a number, true, false or null, or -1 if there is something else."""
    if _same(text, at, _TRUE) or _same(text, at, _NULL):
        return at + 4
    if _same(text, at, _FALSE):
        return at + 5
    start = at
    if text[at] == _MINUS:
        at += 1
    first = at
    at = _digits(text, at)
    if at == first or (text[first] == _ZERO and at > first + 1):
        return -1
    if text[at] == _POINT:
        first = at + 1
        at = _digits(text, first)
        if at == first:
            return -1
    if text[at] | 0x20 == ord("e"):
        first = at + 1
        if text[first] == _PLUS or text[first] == _MINUS:
            first += 1
        at = _digits(text, first)
        if at == first:
            return -1
    return at if at - start < _LONGEST_NUMBER else -1


@compiled
def _digits(text, at):  # type: ignore[no-untyped-def]
    """Return the position of the first byte that is no digit."""
    while _ZERO <= text[at] <= _NINE:
        at += 1
    return at
