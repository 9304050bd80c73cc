"""Compiled loops over the bytes of JSON.

All of them read text that ends in a newline, and none goes on behind a newline, so none leaves
the text. What they cannot vouch for is *odd*: they return -1 and say nothing about its validity.
"""

import numpy as np

from rwkvkit.tokenizer.jit import compiled

NEWLINE, _TAB, _RETURN, _SPACE, QUOTE, _BACKSLASH = b'\n\t\r "\\'
OPEN, CLOSE, _OPEN_LIST, _CLOSE_LIST, COLON, COMMA = b"{}[]:,"
_LOWER_E, _LOWER_U, _MINUS, _PLUS, _POINT, _ZERO, _NINE = b"eu-+.09"
_CONTINUATION = 0x80  # bits 6 and 7 of every byte of a UTF-8 sequence but the first
_LONGEST_NUMBER = 300  # Python refuses integers of some thousand digits
_DEEPEST = 64  # objects and lists in one another: a bit each

_1 = np.uint64(1)  # numba makes a float of an uint64 and a bare number
_2 = np.uint64(2)

PLAIN = np.zeros(256, np.bool_)  # bytes that stand for themselves in a string
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
def string(text, at, out, o):  # type: ignore[no-untyped-def]
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
            while PLAIN[byte]:
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

        if byte == QUOTE:
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
def value(text, at, out, o):  # type: ignore[no-untyped-def]
    """Return the position after a value of any kind, or -1; ``out`` from ``o`` is overwritten."""
    depth = 0
    is_object = np.uint64(0)  # a bit for each that is open, the innermost last
    while True:
        byte = text[at]
        if byte == QUOTE:
            at, _ = string(text, at + 1, out, o)
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
                    at = _name(text, at, out, o)
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
                    at = _name(text, at, out, o)
                break
            if text[at] != (CLOSE if inside else _CLOSE_LIST):
                return -1
            at += 1
            depth -= 1
            is_object >>= _1
        if at < 0:
            return -1


@compiled
def _name(text, at, out, o):  # type: ignore[no-untyped-def]
    """Return the position of the value whose name starts at ``at``, or -1; see ``value``."""
    if text[at] != QUOTE:
        return -1
    at, _ = string(text, at + 1, out, o)
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
