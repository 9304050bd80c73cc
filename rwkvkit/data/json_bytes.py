"""Compiled loops over the bytes of JSON.

All of them read text that ends in a newline, and none believes what it sees behind a newline, but
they may look: ``SLACK`` bytes of memory follow the text. What they cannot vouch for is *odd*: they
return -1 and say nothing about its validity.
"""

import numpy as np

from rwkvkit.data.vectors import WIDTH, breaks_utf8, copy, is_ascii, lowest, odd_bytes
from rwkvkit.tokenizer.jit import compiled
from rwkvkit.tokenizer.machine import load8, load16, store8

NEWLINE, _TAB, _RETURN, _SPACE, QUOTE, _BACKSLASH = b'\n\t\r "\\'
OPEN, CLOSE, _OPEN_LIST, _CLOSE_LIST, COLON, COMMA = b"{}[]:,"
_LOWER_E, _LOWER_U, _MINUS, _PLUS, _POINT, _ZERO, _NINE = b"eu-+.09"
_CONTINUATION = 0x80  # bits 6 and 7 of every byte of a UTF-8 sequence but the first
_LONGEST_NUMBER = 300  # Python refuses integers of some thousand digits
_DEEPEST = 64  # objects and lists in one another: a bit each

# numba makes a float of an uint64 and a bare number
_0, _1, _2, _3, _4, _5, _6, _12, _18 = map(np.uint64, (0, 1, 2, 3, 4, 5, 6, 12, 18))
_LEAD_2, _LEAD_3, _LEAD_4, _NEXT, _LOW_6 = map(np.uint64, (0xC0, 0xE0, 0xF0, 0x80, 0x3F))
_UNICODE = int.from_bytes(b"\\u", "little")
_ONES = np.uint64(2**64 - 1)
_WIDTH = np.uint64(WIDTH)

SLACK = 2 * WIDTH
"""Bytes of memory behind text, and behind the room for strings, that are read and written."""

PLAIN = np.zeros(256, np.bool_)  # ASCII that stands for itself in a string
PLAIN[0x20:0x80] = True
PLAIN[[QUOTE, _BACKSLASH]] = False
_ESCAPES = np.zeros(256, np.uint8)
_ESCAPES[np.frombuffer(b'"\\/bfnrt', np.uint8)] = np.frombuffer(b'"\\/\b\f\n\r\t', np.uint8)
_HEX = np.full(256, -1, np.int64)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)
_TRUE, _FALSE, _NULL = (np.frombuffer(word, np.uint8) for word in (b"true", b"false", b"null"))


@compiled
def space(text, at):  # type: ignore[no-untyped-def]
    """Return the position of the first byte that is no white space; a newline is none."""
    while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
        at += 1
    return at


@compiled
def same(text, at, word):  # type: ignore[no-untyped-def]
    """Return whether ``word`` stands at ``at``; it holds no newline, so it ends with the line."""
    i = 0
    while i < len(word) and text[at + i] == word[i]:
        i += 1
    return i == len(word)


@compiled
def is_utf8(text):  # type: ignore[no-untyped-def]
    """Return whether text, which ends in a newline, is UTF-8."""
    at = _sequences(text, np.int64(0), min(3, len(text)))
    if at < 3:
        return at == len(text)
    start = np.uint64(text.ctypes.data)
    while at + WIDTH <= len(text):
        here = start + np.uint64(at)
        if not is_ascii(here) and breaks_utf8(here):
            return False
        at += WIDTH
    seen = at
    at -= 3  # a sequence may have begun there that is not complete
    while at < seen and text[at] & 0xC0 == _CONTINUATION:
        at += 1
    return _sequences(text, at, len(text)) >= 0


@compiled
def _sequences(text, at, stop):  # type: ignore[no-untyped-def]
    """Return the end of the first UTF-8 sequence that ends at or after ``stop``, or -1."""
    while at < stop:
        size = 1 if text[at] < 0x80 else _sequence(text, at)
        if size == 0:
            return -1
        at += size
    return at


@compiled
def string(text, at, out, o, is_valid):  # type: ignore[no-untyped-def]
    """Write a string to ``out`` as UTF-8, from the byte after its first quote.

    Args:
        text: see the module's docstring.
        at: where the string starts.
        out: has room for ``SLACK`` bytes more than the string.
        o: where to write.
        is_valid: whether the text is known to be UTF-8; else every sequence is looked at.

    Returns:
        The position after its last quote, or -1 if it is odd, and where it ends in ``out``.
    """
    source, target = np.uint64(text.ctypes.data), np.uint64(out.ctypes.data)
    start, there = source + np.uint64(at), target + np.uint64(o)
    while True:
        odd = odd_bytes(start, is_valid)
        here = start
        stop = start + _WIDTH
        while odd:
            found = start + lowest(odd)
            copy(here, there)
            there += found - here
            byte = load8(found)
            if byte == _BACKSLASH:
                meant = _ESCAPES[load8(found + _1)]
                if meant:
                    store8(there, meant)
                    there += _1
                    here = found + _2
                else:
                    here, there = _unicode_escapes(found, there)
            elif byte == QUOTE:
                return np.int64(found + _1 - source), np.int64(there - target)
            else:
                size = np.uint64(_sequence(text, np.int64(found - source)))
                copy(found, there)
                there += size
                here = found + size if size else _0
            if here == _0:
                return np.int64(-1), np.int64(o)
            if here >= stop:
                break
            odd &= _ONES << (here - start)
        if here < stop:
            copy(here, there)
            there += stop - here
            here = stop
        start = here


@compiled
def _unicode_escapes(at, o):  # type: ignore[no-untyped-def]
    """Write the characters that escapes with numbers stand for, as many as follow one another.

    Args:
        at: address of the first escape.
        o: address to write to.

    Returns:
        The address behind the last, 0 if one is odd, and behind the characters.
    """
    while True:
        code = _unit(at)
        at += _6
        if code & 0xF800 == 0xD800:  # one of a pair
            low = _unit(at)
            at += _6
            if code >= 0xDC00 or low & ~0x3FF != 0xDC00:
                return _0, o
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        if code < 0:
            return _0, o
        o = _put(o, np.uint64(code))
        if load16(at) != _UNICODE:
            return at, o


@compiled
def _unit(at):  # type: ignore[no-untyped-def]
    """Return the number of an escape with four hexadecimal digits, negative if it is none."""
    if load16(at) != _UNICODE:
        return np.int64(-1)
    first, second = _HEX[load8(at + _2)], _HEX[load8(at + _3)]
    third, fourth = _HEX[load8(at + _4)], _HEX[load8(at + _5)]
    return first << 12 | second << 8 | third << 4 | fourth


@compiled
def _put(o, code):  # type: ignore[no-untyped-def]
    """Write a character as UTF-8 to an address; return the one behind it."""
    if code < 0x80:
        store8(o, code)
        return o + _1
    if code < 0x800:
        store8(o, _LEAD_2 | code >> _6)
    else:
        if code < 0x10000:
            store8(o, _LEAD_3 | code >> _12)
        else:
            store8(o, _LEAD_4 | code >> _18)
            o += _1
            store8(o, _NEXT | (code >> _12 & _LOW_6))
        o += _1
        store8(o, _NEXT | (code >> _6 & _LOW_6))
    store8(o + _1, _NEXT | (code & _LOW_6))
    return o + _2


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
def value(text, at, out, o, is_valid):  # type: ignore[no-untyped-def]
    """Return the position after a value of any kind, or -1; ``out`` from ``o`` is overwritten."""
    depth = 0
    is_object = np.uint64(0)  # a bit for each that is open, the innermost last
    while True:
        byte = text[at]
        if byte == QUOTE:
            at, _ = string(text, at + 1, out, o, is_valid)
        elif byte in (OPEN, _OPEN_LIST):
            if depth == _DEEPEST:
                return -1
            empty = space(text, at + 1)
            if text[empty] == (CLOSE if byte == OPEN else _CLOSE_LIST):
                at = empty + 1
            else:
                depth += 1
                is_object <<= _1
                at = empty
                if byte == OPEN:
                    is_object |= _1
                    at = _name(text, at, out, o, is_valid)
                    if at < 0:
                        return -1
                continue
        else:
            at = _scalar(text, at)

        while at >= 0:  # behind a value
            if depth == 0:
                return at
            at = space(text, at)
            inside = is_object & _1 == _1
            if text[at] == COMMA:
                at = space(text, at + 1)
                if inside:
                    at = _name(text, at, out, o, is_valid)
                break
            if text[at] != (CLOSE if inside else _CLOSE_LIST):
                return -1
            at += 1
            depth -= 1
            is_object >>= _1
        if at < 0:
            return -1


@compiled
def _name(text, at, out, o, is_valid):  # type: ignore[no-untyped-def]
    """Return the position of the value whose name starts at ``at``, or -1; see ``value``."""
    if text[at] != QUOTE:
        return -1
    at, _ = string(text, at + 1, out, o, is_valid)
    if at < 0:
        return -1
    at = space(text, at)
    return space(text, at + 1) if text[at] == COLON else -1


@compiled
def _scalar(text, at):  # type: ignore[no-untyped-def]
    """Return the position after a number, true, false or null, or -1 if there is something else."""
    if same(text, at, _TRUE) or same(text, at, _NULL):
        return at + 4
    if same(text, at, _FALSE):
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
    if text[at] | 0x20 == _LOWER_E:
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
