import subprocess
import sys

import numpy as np
import pytest

from rwkvkit import WorldTokenizer
from rwkvkit.errors import DataError, SetupError
from rwkvkit.tokenizer import vocabulary

SINGLE = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]


def parse(*lines: str) -> dict[int, bytes]:
    return vocabulary.parse("\n".join(lines).encode(), "v.txt")


def test_bytes_and_strings_are_tokens():
    tokens = parse(*SINGLE, "300 'é ' 3", r"301 b'\xe9 ' 2")
    assert tokens[300] == "é ".encode()
    assert tokens[301] == b"\xe9 "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("300 'ab' 3", "the token has 2 bytes, not 3"),
        ("x 'ab' 2", "invalid literal for int"),
        ("0 'ab' 2", "id 0 is not in 1..65535"),
        ("65536 'ab' 2", "id 65536 is not in 1..65535"),
        ("5 'ab' 2", "id 5 appears twice"),
        ("300 'ab 2", "unterminated string"),
        ("300 12 2", "neither a string nor bytes"),
        ("300 '' 0", "a token has 1 to 128 bytes"),
        (f"300 '{'x' * 129}' 129", "a token has 1 to 128 bytes"),
        ("", "invalid literal"),
    ],
)
def test_a_bad_line_is_named(line, message):
    with pytest.raises(DataError, match=message) as caught:
        parse(*SINGLE, line, "301 'zz' 2")
    assert caught.value.where == "v.txt:257"
    assert "Python string" in caught.value.hint


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (SINGLE[1:], "1 single bytes are no token of the vocabulary, first 0x00"),
        ([*SINGLE, "300 'a' 1"], "two ids of the vocabulary have the same bytes"),
        ([*SINGLE, r"300 b'a\xff' 2"], "0xFF is inside token 300"),
    ],
)
def test_an_unusable_vocabulary_is_refused(lines, message):
    with pytest.raises(DataError, match=message) as caught:
        parse(*lines)
    assert caught.value.hint


def test_a_vocabulary_of_another_encoding_is_refused():
    with pytest.raises(DataError, match="not UTF-8") as caught:
        vocabulary.parse(b"1 '\xff' 1", "v.txt")
    assert caught.value.hint


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read the vocabulary") as caught:
        WorldTokenizer(tmp_path / "none.txt")
    assert caught.value.hint


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match="World vocabulary") as caught:
        vocabulary.find()
    assert "pip install rwkv" in caught.value.hint


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return a small vocabulary file, with an empty cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "v.txt"
    path.write_text("\n".join([*SINGLE, "300 'ab' 2", "301 'abcd' 4"]))
    return path


def cached(tmp_path):
    return list((tmp_path / "cache" / "rwkvkit").iterdir())


def test_the_second_load_comes_from_the_cache(small, tmp_path, monkeypatch):
    first = WorldTokenizer(small)
    assert len(cached(tmp_path)) == 1
    monkeypatch.setattr(vocabulary, "parse", None)
    second = WorldTokenizer(small)
    assert second.fingerprint == first.fingerprint
    for tokenizer in (first, second):
        assert tokenizer.encode("abcabcdé").tolist() == [300, 100, 301, 196, 170]
        assert tokenizer.decode([300, 301, 257]) == "ababcd"


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "other"])
def test_a_damaged_cache_is_rebuilt(small, tmp_path, damage):
    fingerprint = WorldTokenizer(small).fingerprint
    (path,) = cached(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncate": content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "other": b"not an archive",
    }
    path.write_bytes(damaged[damage])
    tokenizer = WorldTokenizer(small)
    assert tokenizer.fingerprint == fingerprint
    assert tokenizer.encode("ab").tolist() == [300]
    assert path.read_bytes() != damaged[damage]


def test_an_unwritable_cache_does_not_matter(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert WorldTokenizer(small).encode("ab").tolist() == [300]


def test_the_fingerprint_is_of_the_mapping_not_the_file(small, tmp_path):
    lines = small.read_text().splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\r\n".join(reversed(lines)).replace("'ab'", "b'ab'"))
    assert WorldTokenizer(other).fingerprint == WorldTokenizer(small).fingerprint
    other.write_text("\n".join(lines).replace("'ab'", "'ba'"))
    assert WorldTokenizer(other).fingerprint != WorldTokenizer(small).fingerprint


def test_tables_keep_the_promises_the_loops_rely_on():
    tables = vocabulary.load(vocabulary.find()).tables
    bytes_there = tables.slots >> np.uint64(16) & np.uint64(0xFFFF)
    assert (bytes_there[:256] == 256).all()  # nodes without children stay empty
    used = tables.slots[bytes_there < 256]
    bases = used >> np.uint64(32) & np.uint64(0xFFFFFF)
    own = bases[bases > 0]
    assert len(np.unique(own)) == len(own)
    assert bases.max() + 255 < len(tables.slots)
    assert tables.inside[ord("t") | ord("h") << 8]
    assert not tables.inside[ord("a") | 0xFF << 8]


def test_nothing_heavy_is_imported():
    code = (
        "import sys, rwkvkit; rwkvkit.WorldTokenizer().encode('x');"
        "import rwkvkit.data.build;"
        "print(sorted({'torch', 'rwkv', 'sympy', 'pyrwkv_tokenizer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
