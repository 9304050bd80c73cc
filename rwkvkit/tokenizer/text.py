"""What writes text needs of a tokenizer: loading it, and the text of tokens as they come."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from rwkvkit.tokenizer.huggingface import HuggingFaceTokenizer
from rwkvkit.tokenizer.world import WorldTokenizer

Tokenizer: TypeAlias = WorldTokenizer | HuggingFaceTokenizer

_CUT = "�"  # what the first bytes of a character decode to


def load_tokenizer(vocab: str | Path | None, end: str | int | None = None) -> Tokenizer:
    """Load the tokenizer that a file describes.

    Args:
        vocab: a ``tokenizer.json``, another file in the form of the World vocabulary, or None for
            that of the World models.
        end: for a ``tokenizer.json``, the token that ends documents, if not the one that
            ``HuggingFaceTokenizer`` finds.

    Raises:
        DataError, SetupError: the file is damaged or missing.
        RecipeError: it lacks the token that is to end documents.
    """
    if vocab is not None and Path(vocab).suffix == ".json":
        return HuggingFaceTokenizer(vocab, end)
    return WorldTokenizer(vocab)


def kept_tokenizer(vocab: str | None, end: str | int | None = None) -> Tokenizer:
    """Do what ``load_tokenizer`` does, once for each state of the files it reads."""
    return _kept(vocab, end, _state(vocab))


@lru_cache(maxsize=4)
def _kept(vocab: str | None, end: str | int | None, state: object) -> Tokenizer:
    return load_tokenizer(vocab, end)


def _state(vocab: str | None) -> tuple[tuple[str, int, int], ...]:
    if vocab is None:
        return ()
    path = Path(vocab)
    read = (path, path.with_name("tokenizer_config.json"))  # which may name the ending token
    there = ((os.path.realpath(each), each.stat()) for each in read if each.exists())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in there)


def text_pieces(
    tokenizer: Tokenizer, before: Sequence[int], tokens: Iterable[int]
) -> Iterator[str]:
    """Yield the text of tokens as they come, in pieces of whole characters.

    What a token adds to the text may depend on the one before it (a space, half of a character),
    so each piece is the difference that it makes there.

    Args:
        tokenizer: of the tokens.
        before: the tokens that stand before them.
        tokens: what to decode.
    """
    ids = list(before)
    start, told = 0, len(ids)  # ids[start:told] is the context, whose text has been yielded
    for token in tokens:
        ids.append(token)
        piece = _added(tokenizer, ids, start, told)
        if piece and not piece.endswith(_CUT):
            yield piece
            start, told = told, len(ids)
    if piece := _added(tokenizer, ids, start, told):
        yield piece


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yield a text as it comes, up to the first of some texts that is complete in it.

    An end that may be the beginning of one of them waits for what follows.

    Args:
        pieces: of the text.
        stops: what ends it; none of them is empty.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            _, at = min(found)
            if at:
                yield held[:at]
            return
        ready = len(held) - _begun(held, stops)
        if ready:
            yield held[:ready]
        held = held[ready:]
    if held:
        yield held


def _begun(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text are the beginning of a stop, at most."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)


def _added(tokenizer: Tokenizer, ids: Sequence[int], start: int, told: int) -> str:
    return tokenizer.decode(ids[start:])[len(tokenizer.decode(ids[start:told])) :]
