import hashlib
import importlib.util
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrwkv_tokenizer import RWKVTokenizer
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from rwkvkit import WorldTokenizer
from rwkvkit.errors import DataError
from rwkvkit.tokenizer import lanes, vocabulary

TOKENS = vocabulary.parse(vocabulary.find().read_bytes(), "vocabulary")
IDS = {token: i for i, token in TOKENS.items()}
OURS = WorldTokenizer()
PYRWKV = RWKVTokenizer()
RWKV = TRIE_TOKENIZER(str(vocabulary.find()))
PIECES = [token.decode() for token in TOKENS.values() if token.isascii() or len(token) > 6]

texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(st.sampled_from("ab \n=-_the0中文日本кот🙂\u200d\u0301"), max_size=60),
)


def greedy(data: bytes) -> list[int]:
    """Return the ids by the definition: always the longest token that fits."""
    ids, at = [], 0
    while at < len(data):
        size = next(
            n for n in range(128, 0, -1) if data[at : at + n] in IDS and at + n <= len(data)
        )
        ids.append(IDS[data[at : at + size]])
        at += size
    return ids


@pytest.fixture(scope="module")
def tokenizer() -> WorldTokenizer:
    return WorldTokenizer()


@pytest.fixture(scope="module")
def long_text() -> str:
    """Return text long enough for the lanes, of several kinds."""
    rng = random.Random(1)
    source = Path(hashlib.__file__).read_text(encoding="utf-8")
    pieces = rng.choices(PIECES, k=4000)
    characters = (
        chr(rng.choice([rng.randrange(32, 0x3000), 0x4E00, 0x1F600])) for _ in range(5000)
    )
    return source + "".join(pieces) + "".join(characters) + "a" * 3000 + " " * 3000 + source


def test_every_token_encodes_to_itself(tokenizer):
    for i, token in TOKENS.items():
        assert tokenizer.decode_bytes([i]) == token
        if token != b"\xff":
            # An unfinished character is a whole document here: only joined buffers take bytes.
            assert tokenizer.encode_joined(token + b"\xff").tolist() == [i, 0]


@settings(max_examples=1000, deadline=None)
@given(st.lists(texts, min_size=10, max_size=10))
def test_two_other_encoders_agree_on_ten_thousand_texts(ten):
    for text in ten:
        ids = OURS.encode(text)
        assert ids.dtype == np.uint16
        assert ids.tolist() == RWKV.encode(text) == PYRWKV.encode(text)
        assert OURS.decode(ids) == text


def test_other_encoders_agree_on_every_token(tokenizer):
    for token in TOKENS.values():
        text = token.decode(errors="ignore")
        if text and text != "\ufffd":
            assert tokenizer.encode(text).tolist() == RWKV.encode(text) == PYRWKV.encode(text)


def test_long_text_goes_through_the_lanes_unchanged(tokenizer, long_text):
    ids = tokenizer.encode(long_text)
    assert ids.tolist() == greedy(long_text.encode())
    assert tokenizer.decode(ids) == long_text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [6, 7, 8, 256])
def test_lanes_of_unequal_work_share_it(tokenizer, long_text, seed, most, monkeypatch):
    """Kinds of text that take very different numbers of steps, in long stretches."""
    rng = random.Random(seed)
    kinds = [long_text[:20_000], "=" * 30_000, "\u0301" * 20_000, "🙂" * 9000, "中文 " * 8000]
    data = "".join(rng.choices(kinds, k=9)).encode()
    text = np.frombuffer(data, np.uint8)
    tables = vocabulary.load(vocabulary.find()).tables
    ids, simple = np.empty((2, len(text)), np.uint16)
    monkeypatch.setattr(lanes, "_MOST_PIECES", most)
    loop = lanes.encode_long.py_func if most < 256 else lanes.encode_long
    count = loop(text, *tables, ids)
    assert count == lanes.encode_short(text, tables.slots, tables.roots, simple)
    assert np.array_equal(ids[:count], simple[:count])


def test_a_thread_has_a_buffer_of_its_own(tokenizer, long_text):
    texts = [long_text[start:] for start in range(0, 4000, 100)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(tokenizer.encode, texts))
    for text, ids in zip(texts, together, strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))


@pytest.mark.parametrize("size", [0, 1, 2, 255, 1023, 1024, 2047, 2048, 2049, 2300, 4097, 9001])
@pytest.mark.parametrize("unit", ["a", " ", "import numpy as np\n", "中文", "🙂", "\u0301x"])
def test_lengths_around_the_borders_of_the_lanes(tokenizer, size, unit):
    text = (unit * size)[:size]
    assert tokenizer.encode(text).tolist() == greedy(text.encode())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(texts, texts.map(lambda text: text * 40)), max_size=30))
def test_joined_documents_encode_as_each_alone(documents):
    joined = OURS.encode_joined(b"".join(d.encode() + b"\xff" for d in documents))
    assert joined.tolist() == [i for d in documents for i in [*OURS.encode(d).tolist(), 0]]
    batch = OURS.encode_batch(documents)
    assert [ids.tolist() for ids in batch] == [OURS.encode(d).tolist() for d in documents]


@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_joined_documents(tokenizer, long_text, seed):
    rng = random.Random(seed)
    documents = []
    for _ in range(3000):
        start = rng.randrange(len(long_text))
        documents.append(long_text[start : start + rng.choice([0, 1, 5, 50, 700])])
    joined = tokenizer.encode_joined(b"".join(d.encode() + b"\xff" for d in documents))
    assert joined.tolist() == [i for d in documents for i in [*tokenizer.encode(d).tolist(), 0]]


def test_a_joined_buffer_may_lack_the_last_end(tokenizer):
    ids = tokenizer.encode_joined(b"Hello\xff world").tolist()
    assert ids == [*greedy(b"Hello"), 0, *greedy(b" world")]


def test_broken_utf8_is_replaced_and_no_token_is_nothing(tokenizer):
    euro = "€".encode()
    assert tokenizer.decode([0, IDS[b"a"], 0, 65535]) == "a"
    assert tokenizer.decode([IDS[bytes([byte])] for byte in euro[:2]]) == "\ufffd"
    assert tokenizer.decode([IDS[bytes([byte])] for byte in euro]) == "€"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(np.array([], np.uint16)) == ""


@pytest.mark.parametrize("wrong", [-1, 65536, 2**40])
def test_an_impossible_id_is_named(tokenizer, wrong):
    with pytest.raises(DataError, match=f"token id {wrong} is not in 0..65535"):
        tokenizer.decode([5, wrong])


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff"])
def test_a_lone_surrogate_is_an_error(tokenizer, text):
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode(text)
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode_batch(["fine", text])


def test_constants(tokenizer):
    assert tokenizer.vocab_size == 65536
    assert tokenizer.max_id == 65529
    assert tokenizer.fingerprint == WorldTokenizer().fingerprint


def test_the_copy_in_the_other_package_has_the_same_fingerprint(tokenizer):
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    path = Path(spec.origin).with_name("rwkv_vocab_v20230424.txt")
    assert WorldTokenizer(path).fingerprint == tokenizer.fingerprint
