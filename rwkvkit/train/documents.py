"""Samples made of documents: packed into rows or padded, with what is no document masked out."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from rwkvkit.data.binidx import Binidx
from rwkvkit.data.order import make_keys
from rwkvkit.train.batch import Batch
from rwkvkit.train.packing import Rows, shuffled
from rwkvkit.train.tokens import check_vocabulary

_BUCKETS = 16  # lengths that padded batches may have: few shapes, and little padding
_WITHIN = 2**64 - 5  # first word of a key; rwkvkit.train.packing uses those above


@dataclass(frozen=True)
class PackedSamples:
    """Rows of documents, in another order each pass; a sample is a row.

    Attributes:
        data: the dataset.
        rows: which pieces of it make a row.
        vocab_size: ids must be below this.
        seed: of the order.
        segments: see ``Batch``.
        lines: the order and what follows from it, for people.
    """

    data: Binidx
    rows: Rows
    vocab_size: int
    seed: int
    segments: int = 1
    lines: tuple[str, ...] = ()

    @property
    def once(self) -> int:
        """Positions of all rows."""
        return len(self.rows) * self.rows.size

    @property
    def sample_tokens(self) -> int:
        """Positions of a row."""
        return self.rows.size

    def tokens(self, count: int) -> int:
        """Return the positions of ``count`` samples."""
        return count * self.rows.size

    def read(self, start: int, count: int) -> Batch:
        """Return samples ``start …`` (from 1), with a mask and resets.

        Raises:
            DataError: a token id does not fit the model's vocabulary.
        """
        places = np.arange(start - 1, start - 1 + count)
        numbers = shuffled(places, len(self.rows), self.seed)
        return gather(self.data, self.rows, numbers, self.rows.size, self.vocab_size, self.segments)


class PaddedSamples:
    """Documents of similar length in each global batch, padded to one of 16 lengths.

    A pass sorts the documents into buckets of length, in an order of its own within each bucket,
    cuts them into groups of G and visits the groups in an order of its own. Where the last group
    is not full, samples without a target fill it.

    Args:
        data: the dataset.
        pieces: the documents, one a row.
        vocab_size: ids must be below this.
        group: samples an optimizer step, G.
        seed: of the order.
        lines: the order and its reason, for people; gets a line more.
    """

    def __init__(
        self,
        data: Binidx,
        pieces: Rows,
        vocab_size: int,
        *,
        group: int,
        seed: int,
        lines: tuple[str, ...] = (),
    ) -> None:
        self.data, self.pieces, self.vocab_size = data, pieces, vocab_size
        self._group, self._seed = group, seed
        step = -(-pieces.size // _BUCKETS)
        self._buckets = ((pieces.lengths - 1) // step).astype(np.int8)
        ranked = np.sort(self._buckets)
        ends = np.arange(group - 1, len(ranked) + group - 1, group)
        last = ranked[np.minimum(ends, len(ranked) - 1)]
        self._widths = np.minimum((last.astype(np.int64) + 1) * step, pieces.size)
        self._ordered = lru_cache(maxsize=2)(self._order)
        self._summed = lru_cache(maxsize=2)(self._sums)
        share = 1 - int(pieces.lengths.sum(dtype=np.int64)) / self.once
        about = f"{len(pieces):,} samples, {share:.1%} of the positions are padding"
        self.lines = (*lines, about)

    @property
    def once(self) -> int:
        """Positions of one pass, padding included."""
        return int(self._widths.sum()) * self._group

    @property
    def sample_tokens(self) -> float:
        """Mean positions of a sample."""
        return float(self._widths.mean())

    def tokens(self, count: int) -> int:
        """Return the positions of the first ``count`` samples, padding included."""
        groups, rest = divmod(count, self._group)
        passes, place = divmod(groups, len(self._widths))
        sums = self._summed(passes)
        return passes * self.once + int(
            sums[place] * self._group + (sums[place + 1] - sums[place]) * rest
        )

    def read(self, start: int, count: int) -> Batch:
        """Return samples ``start …`` (from 1), as wide as their groups, with a mask.

        Raises:
            DataError: a token id does not fit the model's vocabulary.
        """
        places, within = np.divmod(np.arange(start - 1, start - 1 + count), self._group)
        groups = shuffled(places, len(self._widths), self._seed)
        numbers = np.full(count, -1)
        for turn in np.unique(places // len(self._widths)):
            order = self._ordered(int(turn))
            own = places // len(self._widths) == turn
            ranks = groups[own] * self._group + within[own]
            numbers[own] = np.where(
                ranks < len(order), order[np.minimum(ranks, len(order) - 1)], -1
            )
        width = int(self._widths[groups].max())
        return gather(self.data, self.pieces, numbers, width, self.vocab_size)

    def _order(self, turn: int) -> NDArray[np.int64]:
        """Return the documents of a pass by bucket."""
        count = len(self._buckets)
        keys = make_keys(self._seed, (_WITHIN, turn, np.arange(count)), count)
        return np.lexsort((keys, self._buckets))

    def _sums(self, turn: int) -> NDArray[np.int64]:
        """Return the widths of the groups before each place of a pass, summed."""
        groups = len(self._widths)
        order = shuffled(np.arange(turn * groups, (turn + 1) * groups), groups, self._seed)
        return np.concatenate([[0], np.cumsum(self._widths[order])])


def gather(
    data: Binidx,
    rows: Rows,
    numbers: NDArray[np.int64],
    width: int,
    vocab_size: int,
    segments: int = 1,
) -> Batch:
    """Read rows: each piece where the one before ends, padding behind the last.

    Args:
        data: the dataset.
        rows: all rows.
        numbers: which to read [G]; -1 is a row of padding.
        width: T, at least as long as any of them.
        vocab_size: ids must be below this.
        segments: see ``Batch``.

    Raises:
        DataError: a token id does not fit the model's vocabulary.
    """
    there = numbers >= 0
    chosen = np.where(there, numbers, 0)
    counts = np.where(there, rows.first[chosen + 1] - rows.first[chosen], 0)
    of_row = np.repeat(np.arange(len(numbers)), counts)  # the row of each piece
    ends = np.cumsum(counts)
    pieces = np.arange(len(of_row)) + np.repeat(rows.first[chosen] - ends + counts, counts)
    lengths = rows.lengths[pieces].astype(np.int64)
    before = np.cumsum(lengths) - lengths  # positions of the pieces before
    row_before = np.concatenate([[0], np.cumsum(np.bincount(of_row, lengths, len(numbers)))])
    targets = of_row * width + before - row_before[of_row].astype(np.int64)
    each = np.arange(int(lengths.sum()))
    places = each + np.repeat(rows.starts[pieces] - before, lengths)
    put = each + np.repeat(targets - before, lengths)

    stream = data.tokens(0, data.n_tokens)
    x, y = (np.zeros(len(numbers) * width, np.int64) for _ in range(2))
    mask, resets = (np.zeros(len(numbers) * width, np.uint8) for _ in range(2))
    x[put], y[put] = stream[places], stream[places + 1]
    mask[put] = data.mask(0, data.n_tokens)[places + 1] if data.has_mask else 1
    resets[targets] = 1
    ids = np.stack([x, y])
    check_vocabulary(ids, vocab_size, data)
    shape = (len(numbers), width)
    return Batch(
        torch.from_numpy(ids[0].reshape(shape)),
        torch.from_numpy(ids[1].reshape(shape)),
        torch.from_numpy(mask.reshape(shape)),
        torch.from_numpy(resets.reshape(shape)).bool(),
        segments,
    )
