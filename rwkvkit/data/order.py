"""In which order documents stand in the corpus: pass after pass, each freshly shuffled.

The order is a sort by key. For document d in pass p the key chains 64-bit words through the mixing
function of SplitMix64 (Steele, Lea and Flood 2014)::

    mix(z) = let z = z + 0x9E3779B97F4A7C15
             let z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
             let z = (z ^ z >> 27) * 0x94D049BB133111EB
             in  z ^ z >> 31                                       (all modulo 2**64)

    key = mix(seed)
    for word in (p, source, file, offset, copy):  key = mix(key ^ word)

where d is known by the index of its source in the recipe, of its file in the source, and the byte
offset of its line in the file (decompressed), and copy counts the repetitions of its source.
So the order depends on the recipe and the files' contents, not on how the work was divided or
where the files lie. Equal keys keep the natural order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1


@dataclass(frozen=True)
class DocumentIds:
    """What the key of a document is made of; one entry a document, in natural order.

    Attributes:
        sources: index of the source in the recipe, [documents], never falling.
        files: index of the file in its source, [documents].
        offsets: byte offset of the line in its file, [documents].
    """

    sources: NDArray[np.uint64]
    files: NDArray[np.uint64]
    offsets: NDArray[np.uint64]


def passes(
    ids: DocumentIds, repeats: Sequence[int], *, epochs: int, seed: int | None
) -> Iterator[NDArray[np.int64]]:
    """Yield the document numbers of each pass, in the order they are written.

    Args:
        ids: the documents.
        repeats: how often the documents of each source stand in a pass. Unshuffled, a source
            stands that many times in a row.
        epochs: number of passes.
        seed: shuffles; None keeps the natural order.
    """
    natural, copies = _one_pass(ids, repeats)
    for number in range(epochs):
        if seed is None:
            yield natural
        else:
            keys = shuffle_keys(ids, natural, copies, number, seed)
            yield natural[np.argsort(keys, kind="stable")]


def shuffle_keys(
    ids: DocumentIds,
    documents: NDArray[np.int64],
    copies: NDArray[np.uint64],
    number: int,
    seed: int,
) -> NDArray[np.uint64]:
    """Return the keys that the copies of documents have in pass ``number``, uint64 [copies]."""
    start = np.array([seed & _MASK], np.uint64)
    key = _mix(_mix(start) ^ np.uint64(number))
    for words in (ids.sources, ids.files, ids.offsets):
        key = _mix(key ^ words[documents])
    return _mix(key ^ copies)


def _one_pass(
    ids: DocumentIds, repeats: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return documents and copy numbers of a pass in natural order."""
    borders = np.searchsorted(ids.sources, np.arange(len(repeats) + 1))
    documents = [np.empty(0, np.int64)]
    copies = [np.empty(0, np.uint64)]
    for start, stop, repeat in zip(borders[:-1], borders[1:], repeats, strict=True):
        documents.append(np.tile(np.arange(start, stop), repeat))
        copies.append(np.repeat(np.arange(repeat, dtype=np.uint64), stop - start))
    return np.concatenate(documents), np.concatenate(copies)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
