"""Whether the tokens of documents give back their text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.chunks import Chunk
from rwkvkit.data.documents import Documents
from rwkvkit.data.forms import SEAM
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.huggingface import HuggingFaceTokenizer
from rwkvkit.tokenizer.jit import compiled
from rwkvkit.tokenizer.text import Tokenizer

_SAMPLE = 1024  # tokens of a document that are decoded


def check_round_trip(
    tokenizer: Tokenizer,
    documents: Documents,
    tokens: NDArray[Any],
    sizes: NDArray[np.int64],
    chunk: Chunk,
    *,
    full: bool,
) -> None:
    """Compare documents with their tokens.

    With the World tokenizer the bytes of the tokens of every document must sum up to its own, and
    the beginning of one document in the chunk is decoded. A ``tokenizer.json`` may change text
    before it encodes, so its documents are compared only if ``full``; but none may hold the token
    that ends documents.

    Args:
        tokenizer: what encoded them.
        documents: the texts.
        tokens: of all documents, [tokens].
        sizes: tokens in each, the ending one included, [documents].
        chunk: where they come from.
        full: decode all of every document.

    Raises:
        DataError: a document does not come back, or seems to end before its end; it is named.
    """
    if not len(sizes):
        return
    starts = np.cumsum(sizes) - sizes
    if isinstance(tokenizer, HuggingFaceTokenizer):
        ends = np.flatnonzero(tokens == tokenizer.end_id)
        stops = starts + sizes - 1
        if len(ends) > len(stops):
            i = int(np.searchsorted(stops, np.setdiff1d(ends, stops)[0]))
            raise DataError(
                f"the text of this document encodes to {tokenizer.end_token!r}, "
                "the token that ends documents",
                where=_place(documents, i, chunk),
                hint="leave such documents out with filter: {forbid: REGEX}, change their text in "
                "a stage of your own, or name another token: encode: {tokenizer: FILE, end: TOKEN}",
            )
        for i in range(len(sizes)) if full else ():
            own = tokens[starts[i] : starts[i] + sizes[i] - 1]
            if tokenizer.decode(own).encode() != _content(documents, i):
                raise _failed(documents, i, chunk)
        return
    lengths = np.empty(len(sizes), np.int64)
    _text_bytes(tokens, sizes, tokenizer.token_bytes, lengths)
    expected = documents.text_bytes()
    if documents.marks is not None:
        expected -= [len(mark) - 1 for mark in documents.marks]
    wrong = np.flatnonzero(lengths != expected)
    if wrong.size:
        raise _failed(documents, int(wrong[0]), chunk)
    sampled = range(len(sizes)) if full else (len(sizes) // 2,)
    for i in sampled:
        size = int(sizes[i]) if full else min(int(sizes[i]), _SAMPLE)
        decoded = tokenizer.decode_bytes(tokens[starts[i] : starts[i] + size])
        if not _content(documents, i).startswith(decoded):
            raise _failed(documents, i, chunk)


def _content(documents: Documents, i: int) -> bytes:
    return documents.texts[i].replace(SEAM, b"")


def _failed(documents: Documents, i: int, chunk: Chunk) -> DataError:
    return DataError(
        "the tokens of this document do not give back its text",
        where=_place(documents, i, chunk),
        hint="the tokenizer changes text, or its files are damaged",
    )


def _place(documents: Documents, i: int, chunk: Chunk) -> str:
    file = chunk.files[int(documents.files[i]) - chunk.first_file]
    unit = "byte" if file.format in ("jsonl", "text") else "row"
    return f"{file.name}, document at {unit} {documents.offsets[i]}"


@compiled
def _text_bytes(tokens, sizes, token_bytes, out):  # type: ignore[no-untyped-def]
    """Write to ``out`` how many bytes of text the tokens of each document stand for."""
    start = 0
    for i in range(len(sizes)):
        total = 0
        for token in tokens[start : start + sizes[i]]:
            total += token_bytes[token]
        out[i] = total
        start += sizes[i]
