"""Text as tokens come, with both kinds of tokenizer."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rwkvkit.errors import DataError
from rwkvkit.tokenizer.text import Tokenizer, load_tokenizer, text_pieces, until
from rwkvkit.tokenizer.world import WorldTokenizer

TEXT = " naïve 日本語 😀 text"


@pytest.fixture(params=["bytes.txt", "bytes.json", "words.json"])
def tokenizer(request, tmp_path: Path) -> Tokenizer:
    """Bytes, whose characters come in parts, and words, whose spaces depend on what is before."""
    path = tmp_path / request.param
    if path.suffix == ".txt":
        path.write_text("".join(f"{b + 1} {bytes([b])!r} 1\n" for b in range(256)))
        return load_tokenizer(path)
    if path.stem == "bytes":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if path.stem == "bytes" else [],
            show_progress=False,
        ),
    )
    made.save(str(path))
    return load_tokenizer(path)


@pytest.mark.parametrize("known", range(6))
def test_pieces_are_the_text(tokenizer: Tokenizer, known: int) -> None:
    ids = tokenizer.encode(TEXT).tolist()
    before, after = ids[:known], ids[known:]
    pieces = list(text_pieces(tokenizer, before, after))
    start = tokenizer.decode(before)
    if "�" not in start:  # the prompt is whole characters
        assert start + "".join(pieces) == tokenizer.decode(ids)
        assert not any("�" in piece for piece in pieces)


def test_a_character_that_never_ends_is_shown_all_the_same() -> None:
    tokenizer = WorldTokenizer()
    ids = tokenizer.encode("ab").tolist()
    broken = [0xE6 + 1]  # the first byte of three; ids of single bytes are the byte plus 1
    assert "".join(text_pieces(tokenizer, ids, broken)) == "�"
    assert "".join(text_pieces(tokenizer, ids, [*broken, *ids])) == "�ab"
    assert list(text_pieces(tokenizer, ids, [])) == []


@pytest.mark.parametrize(
    ("text", "stops", "want"),
    [
        ("one two", [], "one two"),
        ("one two", ["x"], "one two"),
        ("one two", [" t"], "one"),
        ("one two", ["two", "e t"], "on"),
        ("aab", ["ab"], "a"),
        ("Hi\n\nUse\n\nUser: a", ["\n\nUser:"], "Hi\n\nUse"),
        ("Hi\n\nUse", ["\n\nUser:"], "Hi\n\nUse"),
        ("abc", ["abc", "b"], "a"),  # b is complete first
        ("ja日本", ["日"], "ja"),
        ("x", ["x"], ""),
    ],
)
def test_a_text_ends_before_a_stop_however_it_is_cut(
    text: str, stops: list[str], want: str
) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        told = list(until(pieces, stops))
        assert "".join(told) == want
        assert all(told)


def test_only_what_may_begin_a_stop_waits() -> None:
    pieces = iter(["a\n", "b\n", "\nU", "ser:", "more"])
    told = until(pieces, ["\n\nUser:"])
    assert [next(told), next(told)] == ["a", "\nb"]
    assert list(told) == []
    assert list(pieces) == ["more"]  # nothing is drawn behind the stop


def test_a_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("a\ud800")
