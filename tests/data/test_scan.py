"""The fast reader of jsonl against the strict one: the same documents, or it leaves the line."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from line_cases import some_lines

from rwkvkit.data.documents import JoinedTexts, strict_document
from rwkvkit.data.forms import BadLine, Column
from rwkvkit.data.scan import Scan

ODD = object()


def strictly(line):
    try:
        text = strict_document(line, Column("text"))
    except BadLine:
        return ODD
    return None if text is None else text.content


def scanned(line):
    """Return the document on a line, None for a blank one, or ODD."""
    scan = Scan(line + b"\n", "text")
    scan.run()
    if scan.at == 0:
        return ODD
    assert (scan.at, scan.n_lines) == (len(line) + 1, 1)
    assert scan.offsets().tolist() == [0] * scan.n_documents
    texts = JoinedTexts(scan.joined(), scan.stops())
    assert scan.joined().tobytes() == b"".join(text + b"\xff" for text in texts)
    return texts[0] if scan.n_documents else None


def mutated(line):
    """Lines with a few bytes put in, taken out or changed: mostly bad ones, in all places."""
    bits = b'{}[]",:\\/u0123dDcC89abef+-.eEtrn \t\x00\x1f\x7f\x80\xbf\xc2\xe0\xed\xf0\xf4\xff'
    edit = st.tuples(
        st.integers(0, max(len(line), 1)),
        st.integers(0, 2),
        st.binary(max_size=2) | st.sampled_from([bytes([bit]) for bit in bits]),
    )

    def edited(edits):
        for at, size, new in edits:
            changed = line[:at] + new + line[at + size :]
        return changed.replace(b"\n", b"").replace(b"\r", b"")

    return st.lists(edit, min_size=1, max_size=3).map(edited)


usual = st.builds(
    lambda text, more, ascii_only, order: json.dumps(
        dict(sorted({**more, "text": text}.items(), reverse=order)), ensure_ascii=ascii_only
    ).encode(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.dictionaries(
        st.sampled_from(["a", "z", "textual", ""]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.booleans()
        | st.none()
        | st.recursive(
            st.none() | st.text('a\\"é', max_size=3) | st.integers(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
            ),
        ),
        max_size=3,
    ),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(usual)
def test_the_usual_line_is_read(line):
    found = scanned(line)
    assert found is not ODD
    assert found == strictly(line)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(usual, some_lines.map(lambda line: line.replace(b"\r", b""))).flatmap(mutated))
@example(b'{"text":"\\ud83d\\ude00"}')
@example(b'{"text":"\\ud83d\\u0041"}')
@example(b'{"text":"\\ud83d"}')
@example(b'{"text":"\\ude00"}')
@example(b'{"text":"\\u004"}')
@example(b'{"text":"\\u00')
@example(b'{"text":"\\')
@example(b'{"text":"\xe4\xb8')
@example(b'{"text":"\xed\xa0\x80"}')
@example(b'{"text":"\xc0\x80"}')
@example(b'{"text":"\xf4\x90\x80\x80"}')
@example(b'{"text":"","a":01}')
@example(b'{"text":"","a":1.}')
@example(b'{"text":"","a":-}')
@example(b'{"text":"","a":1e+}')
@example(b'{"text":"","a":truex}')
@example(b'{"text":"","a":nul')
@example(b'{"text":"",}')
@example(b'{"text":"" "a":1}')
@example(b'{"a":"","text":"b","text":"c"}')
@example(b'{"text":"","a":' + b"1" * 5000 + b"}")
@example(b'{"text":"","a":[1,]}')
@example(b'{"text":"","a":[}')
@example(b'{"text":"","a":{"b"}}')
@example(b'{"text":"","a":{"b":1]}')
@example(b'{"text":"","a":{"b":[1,{"text":"c"}]')
@example(b'{"text":"","a":' + b"[" * 5000 + b"]" * 5000 + b"}")
def test_whatever_it_reads_is_what_the_strict_reader_reads(line):
    found = scanned(line)
    assert found is ODD or found == strictly(line)


@pytest.mark.parametrize("lead", range(0x80, 0x100))
def test_every_sequence_of_utf8(lead):
    edges = [0x20, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    for second in edges:
        for third in (0x22, 0x7F, 0x80, 0xBF, 0xC0):
            for fourth in (0x22, 0x7F, 0x80, 0xBF, 0xC0):
                for size in (1, 2, 3, 4):
                    character = bytes([lead, second, third, fourth][:size])
                    line = b'{"text":"%s"}' % character
                    assert scanned(line) == strictly(line)


def test_every_escape():
    escapes = [f"\\u{code:04x}" for code in range(0, 0x10000, 7)]
    escapes += [
        f"\\u{high:04X}\\u{low:04X}"
        for high in (0xD800, 0xDBFF)
        for low in range(0xDC00, 0xE000, 5)
    ]
    escapes += [f"\\{chr(code)}" for code in range(0x20, 0x7F)]
    for escape in escapes:
        line = f'{{"text":"{escape}"}}'.encode()
        assert scanned(line) == strictly(line), escape


@pytest.mark.parametrize("depth", [1, 2, 63, 64, 65])
def test_how_deep_it_looks(depth):
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        line = b'{"a":%s0%s,"text":"b"}' % (opening * depth, closing * depth)
        assert scanned(line) == (b"b" if depth <= 64 else ODD)
        assert strictly(line) == b"b"


def test_odd_lines_are_put_in_their_place():
    lines = [b'{"text": "a"}', b"odd", b"", b'{"text": "b"}', b"odd too", b'{"text": "c"}']
    data = b"\n".join(lines)
    scan = Scan(data, "text")
    scan.run()
    scan.skip(4, b"one")
    scan.run()
    scan.skip(8, None)
    scan.run()
    assert scan.at == len(data) - len(lines[-1])  # the last line has no newline
    scan.skip(len(lines[-1]), b"c")
    assert list(JoinedTexts(scan.joined(), scan.stops())) == [b"a", b"one", b"b", b"c"]
    assert scan.offsets().tolist() == [0, 14, 19, 41]
    assert (scan.n_lines, scan.n_documents, scan.at) == (6, 4, len(data))


def test_as_many_documents_as_lines_can_hold():
    for last in (b"", b"\n"):
        data = b"\n".join([b'{"":""}'] * 5) + last
        scan = Scan(data, "")
        scan.run()
        if not last:
            scan.skip(len(data) - scan.at, b"")
        assert (scan.n_documents, scan.at) == (5, len(data))
        assert len(scan._stops) <= 6


def test_texts_in_one_buffer_are_a_sequence():
    joined = np.frombuffer(b"one\xff\xfftwo\xff", np.uint8)
    texts = JoinedTexts(joined, np.array([4, 5, 9]))
    assert list(texts) == [b"one", b"", b"two"]
    assert texts[-1] == b"two"
    assert texts[1:] == [b"", b"two"]
    with pytest.raises(IndexError):
        texts[3]
