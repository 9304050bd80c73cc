"""The output cut into blocks, each small enough to be gathered in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.order import sorted_order
from rwkvkit.tokenizer.jit import compiled

PIECE_BYTES = 64  # of memory for a document while its block is gathered
_MOST_BLOCKS = 2**16  # their numbers are uint16


@dataclass(frozen=True)
class Block:
    """Documents that follow one another in the output, listed in any order.

    Attributes:
        places: where each lies, int64 [documents].
        sizes: tokens in each, int32 [documents].
        targets: where in the block each begins, in tokens, int64 [documents].
        ordered: the sizes in the order of the output, int32 [documents].
    """

    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    targets: NDArray[np.int64]
    ordered: NDArray[np.int32]

    @property
    def n_tokens(self) -> int:
        """Tokens in all of them."""
        return int(self.ordered.sum(dtype=np.int64))


def in_order(
    places: NDArray[np.int64], sizes: NDArray[np.int32], width: int, n_bytes: int
) -> Iterator[Block]:
    """Yield blocks of documents that are listed in the order of the output.

    Args:
        places: where each lies.
        sizes: tokens in each.
        width: bytes of a token, with all that lies beside it.
        n_bytes: what a block may take in memory, unless it is one document.
    """
    step = max(1, n_bytes // PIECE_BYTES)
    for first in range(0, len(sizes), step):
        own_places, own_sizes = places[first : first + step], sizes[first : first + step]
        stops = np.cumsum(own_sizes.astype(np.int64) * width + PIECE_BYTES)
        start = 0
        while start < len(own_sizes):
            before = stops[start - 1] if start else 0
            stop = int(np.searchsorted(stops, before + n_bytes, side="right"))
            stop = max(stop, start + 1)
            ordered = own_sizes[start:stop]
            yield Block(own_places[start:stop], ordered, _starts(ordered), ordered)
            start = stop


def by_key(
    keys: NDArray[np.uint64],
    places: NDArray[np.int64],
    sizes: NDArray[np.int32],
    width: int,
    n_bytes: int,
) -> Iterator[Block]:
    """Yield blocks of documents that are sorted by key; equal keys keep their order.

    A block is a range of keys. Within it documents are listed as they come, which is as they lie,
    so only where each goes has to be found.

    Args:
        keys: hashes, so that ranges of the same width hold about as much.
        places: where each document lies.
        sizes: tokens in each.
        width: bytes of a token, with all that lies beside it.
        n_bytes: what a block takes in memory, about.
    """
    if not len(keys):
        return
    needed = width * int(sizes.sum(dtype=np.int64)) + PIECE_BYTES * len(sizes)
    listed, stops = _in_ranges(keys, min(-(-needed // n_bytes), _MOST_BLOCKS))
    for own in np.split(listed, stops[:-1]):
        if not len(own):  # beside a document larger than a block
            continue
        own_sizes = sizes[own]
        order = sorted_order(keys[own])
        ordered = own_sizes[order]
        targets = np.empty(len(own), np.int64)
        targets[order] = _starts(ordered)
        yield Block(places[own], own_sizes, targets, ordered)


def _in_ranges(keys: NDArray[np.uint64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the range of the keys into ``count``, all of the same width.

    Returns:
        Which keys lie in the first one, in their order, then which in the second, and so on,
        [keys]; and where each range stops in that list, [count].
    """
    least = keys.min()
    span = int(keys.max() - least)
    shift = max(span.bit_length() - 31, 0)
    width = -(-((span >> shift) + 1) // count)
    listed, stops = np.empty(len(keys), np.int64), np.zeros(count, np.int64)
    _list_by_range(keys, least, np.uint64(shift), np.uint32(width), listed, stops)
    return listed, stops


@compiled
def _list_by_range(keys, least, shift, width, listed, stops):  # type: ignore[no-untyped-def]
    """Fill ``listed``, and ``stops``, which is 0; see ``_in_ranges``."""
    numbers = np.empty(len(keys), np.uint16)
    for i in range(len(keys)):
        number = np.uint32((keys[i] - least) >> shift) // width
        numbers[i] = number
        stops[number] += 1
    start = 0
    for number in range(len(stops)):
        stops[number], start = start, start + stops[number]
    for i in range(len(keys)):
        listed[stops[numbers[i]]] = i
        stops[numbers[i]] += 1


def _starts(sizes: NDArray[Any]) -> NDArray[np.int64]:
    return np.cumsum(sizes, dtype=np.int64) - sizes
