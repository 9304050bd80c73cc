import numpy as np
import pytest
from chunk_cases import chunks
from pydantic import ValidationError

from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.filters import Filter, share_of_letters, share_of_repeated_lines
from rwkvkit.data.finding import find_files
from rwkvkit.data.stages import Encode, Read


@pytest.mark.parametrize(
    ("rules", "kept", "dropped"),
    [
        ({"min_chars": 3}, "äöü", "ab"),
        ({"max_chars": 3}, "äöü", "abcd"),
        ({"require": "(?i)cat"}, "a CAT", "a dog"),
        ({"forbid": r"\d{3}"}, "12", "a 123"),
        ({"min_letters": 0.5}, "ab 12\n", "ab 123"),
        ({"min_letters": 0.9}, "हिन्दी भाषा", "|||| ===="),
        ({"min_letters": 0.1}, "x", " \n"),
        ({"max_repeated_lines": 0.4}, "a\nb\na\n\n\n", "a\nb\n a \nb"),
        ({"max_repeated_lines": 0.3}, "\n".join("abcdefgaaa"), "\n".join("abcdefaaaa")),
        ({"min_chars": 2, "require": "b"}, "ab", "aa"),
    ],
)
def test_rules(rules, kept, dropped):
    rule = Filter(**rules)
    assert rule.keeps(kept)
    assert not rule.keeps(dropped)


def test_shares():
    assert share_of_letters("ab1 !") == 0.5
    assert share_of_letters("") == 0
    assert share_of_repeated_lines("a\n\na\r\nb\na") == 0.5
    assert share_of_repeated_lines("") == 0


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"min_chars": -1},
        {"require": "("},
        {"min_letters": 1.5},
        {"min_chars": 5, "max_chars": 4},
        {"min_tokens": 5, "max_tokens": 4},
        {"max_lines": 3},
    ],
)
def test_wrong_rules(rules):
    with pytest.raises(ValidationError):
        Filter(**rules)


def encoded(read, *stages):
    chain = [Read.model_validate(Read.expand(read)), *stages, Encode()]
    work = ChunkWork(chain, 0)
    [chunk] = chunks(find_files(chain[0].sources))
    return work(chunk)


def test_they_come_before_and_after_encoding(jsonl):
    texts = ["one", "", "two words here", "three", "x" * 40, "last one"]
    path = jsonl("a.jsonl", texts)
    rules = Filter(forbid="^three$"), Filter(min_tokens=2, max_tokens=3), Filter(min_chars=1)
    whole, some = encoded(path), encoded(path, *rules)
    kept = [0, 5]
    assert some.filtered == 4
    assert whole.filtered == 0
    assert some.sizes.tolist() == whole.sizes[kept].tolist()
    assert some.offsets.tolist() == whole.offsets[kept].tolist()
    starts = np.cumsum(whole.sizes) - whole.sizes
    expected = [whole.tokens[starts[i] : starts[i] + whole.sizes[i]] for i in kept]
    assert some.tokens.tolist() == np.concatenate(expected).tolist()
    assert some.mask is None


def test_the_mask_is_cut_with_the_tokens(jsonl):
    chats = [
        [{"role": "user", "content": "q" * n}, {"role": "assistant", "content": "a"}]
        for n in (1, 50, 2)
    ]
    read = {"path": jsonl("a.jsonl", chats, field="m"), "chat": "m"}
    some = encoded(read, Filter(max_tokens=12), Filter(forbid="qq"))
    assert some.filtered == 2
    assert some.mask.shape == some.tokens.shape
    assert encoded(read, Filter(max_chars=1)).mask.tolist() == []


def test_nothing_left_is_an_empty_chunk(jsonl):
    empty = encoded(jsonl("a.jsonl", ["a", "b"]), Filter(min_tokens=100))
    assert (empty.filtered, len(empty.sizes), len(empty.tokens), len(empty.files)) == (2, 0, 0, 0)
