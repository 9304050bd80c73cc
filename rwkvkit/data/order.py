"""In which order documents stand in the corpus, and which of them: all of it decided by keys.

A key chains 64-bit words through the mixing function of SplitMix64 (Steele, Lea and Flood 2014)::

    mix(z) = let z = z + 0x9E3779B97F4A7C15
             let z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
             let z = (z ^ z >> 27) * 0x94D049BB133111EB
             in  z ^ z >> 31                                       (all modulo 2**64)

    key = mix(seed);  for word in words:  key = mix(key ^ word)

A document is known by the index of its source in the recipe, of its file in the source, and the
byte offset of its line in the file (decompressed). The words are

    shuffle of pass p   p, source, file, offset, copy    copy counts the repetitions of its source
    fraction            2**64 - 1, source, file, offset
    split               2**64 - 2, and two words of hash of its content

A shuffled pass is sorted by key; equal keys keep the natural order. So the order depends on the
recipe and the files' contents, not on how the work was divided or where the files lie.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rwkvkit.tokenizer.jit import compiled

FRACTION = 2**64 - 1
SPLIT = 2**64 - 2
_MASK = 2**64 - 1
_PER_SLOT = 8  # keys that are sorted together
_MOST_PER_SLOT = 100  # else they are not hashes


def make_keys(seed: int, words: Sequence[int | NDArray[np.integer]], count: int) -> NDArray:
    """Return the keys that the words give, uint64 [count]; a bare number stands for all of them."""
    keys = np.full(count, _mix_number(seed & _MASK), np.uint64)
    for word in words:
        if isinstance(word, int):
            _chain_number(keys, np.uint64(word & _MASK))
        else:
            _chain(keys, word.astype(np.uint64, copy=False))
    return keys


def in_fraction(
    seed: int,
    share: float,
    source: int,
    files: NDArray[np.integer],
    offsets: NDArray[np.integer],
) -> NDArray[np.bool_]:
    """Return which documents of a source are in the ``share`` of it that is taken.

    Args:
        seed: of the recipe.
        share: between 0 and 1.
        source: its index in the recipe.
        files: index of each document's file in the source, [documents].
        offsets: byte offset of each document's line in its file, [documents].
    """
    return below(make_keys(seed, (FRACTION, source, files, offsets), len(offsets)), share)


def threshold(share: float) -> int:
    """Return the number of keys below which ``share`` of all keys lie."""
    return round(share * 2**64)


def below(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Return which keys lie within the first ``share`` of all, bool [keys]."""
    limit = threshold(share)
    return keys < np.uint64(limit) if limit <= _MASK else np.ones(len(keys), bool)


def sorted_order(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the order that sorts ``keys``; equal ones keep theirs.

    Hashes lie evenly between the least and the greatest, so each is put near its place at once.
    """
    if not len(keys):
        return np.empty(0, np.int64)
    least = keys.min()
    span = int(keys.max() - least)
    n_slots = max(len(keys) // _PER_SLOT, 1)
    shift = max(span.bit_length() - n_slots.bit_length(), 0)
    slots = ((keys - least) >> np.uint64(shift)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(slots))])
    if np.diff(starts).max() > _MOST_PER_SLOT:
        return np.argsort(keys, kind="stable")
    order = np.empty(len(keys), np.int64)
    _sort_slots(keys, slots, starts, order)
    return order


def _mix_number(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


@compiled
def _mix(z):  # type: ignore[no-untyped-def]
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def _chain(keys, words):  # type: ignore[no-untyped-def]
    for i in range(len(keys)):
        keys[i] = _mix(keys[i] ^ words[i])


@compiled
def _chain_number(keys, word):  # type: ignore[no-untyped-def]
    for i in range(len(keys)):
        keys[i] = _mix(keys[i] ^ word)


@compiled
def _sort_slots(keys, slots, starts, order):  # type: ignore[no-untyped-def]
    """Sort keys whose slots are known, one slot after another; stable."""
    ordered = np.empty(len(keys), np.uint64)
    ends = starts.copy()
    for i in range(len(keys)):
        to = ends[slots[i]]
        ordered[to], order[to] = keys[i], i
        ends[slots[i]] = to + 1
    for slot in range(len(starts) - 1):
        for i in range(starts[slot] + 1, starts[slot + 1]):
            key, number = ordered[i], order[i]
            to = i
            while to > starts[slot] and ordered[to - 1] > key:
                ordered[to], order[to] = ordered[to - 1], order[to - 1]
                to -= 1
            ordered[to], order[to] = key, number
