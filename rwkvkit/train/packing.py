"""Which documents share a sample: cut into pieces that fit, and packed into rows.

A document of n tokens has n - 1 positions: each token but the last is an input, and the one after
it its target. Nothing here reads a token; sizes decide.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.order import make_keys, sorted_order
from rwkvkit.tokenizer.jit import compiled

_PACK = 2**64 - 3  # first words of keys; rwkvkit.data.order uses the two above
_SHUFFLE = 2**64 - 4
_CLASSES = 64
_ROUNDS = 4


@dataclass(frozen=True)
class Rows:
    """Pieces of documents, in rows; 12 bytes a piece.

    Attributes:
        starts: place of each piece's first input in the token stream, int64 [pieces].
        lengths: positions of each piece, int32 [pieces].
        first: where the pieces of each row begin, and their number last, int64 [rows + 1].
        size: positions of a row.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    first: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def padding(self) -> float:
        """Share of the positions that no document takes."""
        return 1 - int(self.lengths.sum(dtype=np.int64)) / max(1, len(self) * self.size)


def cut(sizes: NDArray[np.integer], size: int) -> Rows:
    """Cut documents into pieces of ``size`` positions and a shorter last one, each a row.

    Args:
        sizes: tokens of each document, which stand one after another in the token stream.
        size: positions of a row.
    """
    starts = np.empty(_count(sizes, size), np.int64)
    lengths = np.empty(len(starts), np.int32)
    _cut(sizes, size, starts, lengths)
    return Rows(starts, lengths, np.arange(len(starts) + 1, dtype=np.int64), size)


def pack(pieces: Rows, seed: int) -> Rows:
    """Put pieces into as few rows as come out of best fit: each where the least room is left.

    Longer pieces come first, in 64 classes of length and in the order of a keyed hash within a
    class, so that copies of a document seldom meet in a row. Time O(pieces · log(size)).

    Args:
        pieces: one a row.
        seed: of the hash.
    """
    count = len(pieces.lengths)
    keys = make_keys(seed, (_PACK, np.arange(count)), count) >> np.uint64(6)
    shorter = (pieces.size - pieces.lengths).astype(np.uint64) * np.uint64(_CLASSES)
    keys |= (shorter // np.uint64(pieces.size)) << np.uint64(58)
    order = sorted_order(keys)
    del keys, shorter
    rows = np.empty(count, np.int64)
    n_rows = int(_best_fit(pieces.lengths, order, pieces.size, rows))
    first = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=first[1:])
    placed = np.empty(count, np.int64)
    _group(order, rows, first[:-1].copy(), placed)
    return Rows(pieces.starts[placed], pieces.lengths[placed], first, pieces.size)


def shuffled(places: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return which of ``count`` things stands at each place, in an order for each pass over them.

    A Feistel network over the next even number of bits, walked until it lands below ``count``: a
    permutation that needs no table.

    Args:
        places: from 0, on through the passes: place ``count`` is the first of the second pass.
        count: of the things.
        seed: of the order.
    """
    passes, at = np.divmod(places, count)
    half = np.uint64(max(1, (count - 1).bit_length() + 1 >> 1))
    low = np.uint64((1 << int(half)) - 1)
    at = at.astype(np.uint64)
    outside = np.ones(len(at), bool)
    while outside.any():
        passed = passes[outside]
        left, right = at[outside] >> half, at[outside] & low
        for turn in range(_ROUNDS):
            words = (_SHUFFLE, passed, turn, right)
            left, right = right, left ^ (make_keys(seed, words, len(right)) & low)
        at[outside] = left << half | right
        outside = at >= np.uint64(count)
    return at.astype(np.int64)


@compiled
def _count(sizes, size):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(len(sizes)):
        if sizes[i] > 1:
            count += (np.int64(sizes[i]) - 2) // size + 1
    return count


@compiled
def _cut(sizes, size, starts, lengths):  # type: ignore[no-untyped-def]
    piece = 0
    start = np.int64(0)
    for i in range(len(sizes)):
        left = np.int64(sizes[i]) - 1
        place = start
        while left > 0:
            starts[piece] = place
            lengths[piece] = min(left, size)
            piece += 1
            place += size
            left -= size
        start += sizes[i]


@compiled
def _best_fit(lengths, order, size, rows):  # type: ignore[no-untyped-def]
    """Give each piece a row: the one with the least room that takes it, or a new one.

    Rows with the same room form a chain; ``tree`` says which rooms have a row: the leaf of room r
    is ``leaves + r``, a node is set if a leaf below it is.
    """
    leaves = 1
    while leaves < size + 1:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.bool_)
    head = np.full(size + 1, -1, np.int64)  # of each chain
    after = np.empty(len(lengths), np.int64)  # the next row in the chain
    n_rows = 0
    for i in range(len(order)):
        length = lengths[order[i]]
        node = leaves + length  # the smallest room that is at least `length`
        while not tree[node]:
            while node & 1 and node > 1:
                node >>= 1
            if node <= 1:
                node = 0
                break
            node += 1
        if node == 0:
            row = n_rows
            n_rows += 1
            room = np.int64(size)
        else:
            while node < leaves:
                node *= 2
                if not tree[node]:
                    node += 1
            room = np.int64(node - leaves)
            row = head[room]
            head[room] = after[row]
            if head[room] < 0:
                tree[node] = False
                while node > 1:
                    node >>= 1
                    tree[node] = tree[2 * node] or tree[2 * node + 1]
        rows[i] = row
        room -= length
        after[row] = head[room]
        head[room] = row
        if room > 0:
            node = leaves + room
            while node > 0 and not tree[node]:
                tree[node] = True
                node >>= 1
    return n_rows


@compiled
def _group(order, rows, places, placed):  # type: ignore[no-untyped-def]
    for i in range(len(order)):
        placed[places[rows[i]]] = order[i]
        places[rows[i]] += 1
