"""Strings longer than the blocks that are looked at together, with odd bytes at every place."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvkit.data.documents import JoinedTexts, strict_document
from rwkvkit.data.forms import BadLine, Column
from rwkvkit.data.json_bytes import SLACK, is_utf8
from rwkvkit.data.scan import Scan
from rwkvkit.data.vectors import WIDTH

PIECES = ["a" * 70, "x", '"', "\\", "\n", "é", "中", "🙂", "\x7f", "\u2028", "\0"]
BROKEN = [
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc3",
    b"\xe4\xb8",
    b"\xe0\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x99",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
]


def scanned(data: bytes) -> list[bytes]:
    scan = Scan(data, "text")
    scan.run()
    assert scan.at == len(data)
    return list(JoinedTexts(scan.joined(), scan.stops()))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), max_size=4))
def test_long_strings(texts):
    for ascii_only in (True, False):
        lines = (json.dumps({"n": 1, "text": text}, ensure_ascii=ascii_only) for text in texts)
        data = "".join(f"{line}\n" for line in lines).encode()
        assert scanned(data) == [text.encode() for text in texts]


@pytest.mark.parametrize("piece", ["\\n", "\\u4e2d", "\\ud83d\\ude42", "\\u0041\\\\", "é", "🙂"])
def test_a_character_at_every_place_of_a_block(piece):
    for before in range(2 * WIDTH + 2):
        line = f'{{"text":"{"a" * before}{piece * 3}{"b" * 5}"}}\n'.encode()
        expected = json.loads(line)["text"].encode()
        # The last lines are read from a copy, those before it where they are.
        for after in (b"", b'{"text":""}\n' * 20):
            assert scanned(line + after)[0] == expected


@pytest.mark.parametrize("wrong", [b"\\x", b"\\u12g4", b"\\ud83d", b"\\ude42", b"\x01", *BROKEN])
def test_what_is_odd_at_every_place_of_a_block(wrong):
    for before in range(2 * WIDTH + 2):
        line = b'{"text":"%s%s%s"}\n' % (b"a" * before, wrong, b"b" * (before % 3))
        with pytest.raises(BadLine):
            strict_document(line, Column("text"))
        for more in (b"", b'{"text":""}\n' * 20):
            scan = Scan(more + line + more, "text")
            scan.run()
            assert scan.at == len(more)


def test_a_string_without_an_end_stops_at_its_line():
    for size in range(2 * WIDTH + 2):
        for tail in (b"", b"\\", b"\\u", b"\\u00", b"\\ud83d", b"\\ud83d\\u"):
            scan = Scan(b'{"text":"%s%s\n"}\n' % (b"a" * size, tail), "text")
            scan.run()
            assert scan.at == 0


def text_array(data: bytes) -> np.ndarray:
    """Return text with memory behind it that is neither a newline nor ASCII."""
    memory = np.full(len(data) + SLACK, 0xBF, np.uint8)
    memory[: len(data)] = np.frombuffer(data, np.uint8)
    return memory[: len(data)]


def is_decodable(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_utf8_is_found_at_every_place(broken):
    for around in ("a", "é", "中", "🙂"):
        for before in (*range(10), *range(WIDTH - 8, WIDTH + 8), 3 * WIDTH):
            for after in (0, 1, 2, 3, WIDTH):
                data = around.encode() * before + broken + around.encode() * after + b"\n"
                assert not is_utf8(text_array(data)), (around, before, after)


def test_utf8_as_python_decodes_it():
    rng = random.Random(1)
    characters = [chr(code) for code in (0, 9, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF)]
    characters += ["\U00010000", "\U0010ffff", "a", "b"]
    verdicts = set()
    for size in [*range(200)] * 5:
        data = bytearray("".join(rng.choices(characters, k=size)).encode())
        assert is_utf8(text_array(bytes(data) + b"\n"))
        for _ in range(rng.randrange(3)):
            if data:
                data[rng.randrange(len(data))] = rng.choice([0x41, 0x80, 0xA0, 0xC2, 0xE4, 0xF4])
        changed = bytes(data) + b"\n"
        assert is_utf8(text_array(changed)) == is_decodable(changed)
        verdicts.add(is_decodable(changed))
    assert verdicts == {True, False}
