"""The order in which training visits the tokens of a dataset."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from rwkvkit.data.binidx import Binidx
from rwkvkit.train.batch import Batch
from rwkvkit.train.tokens import check_vocabulary

MINI_EPOCH_SAMPLES = 40320
"""Samples in a mini-epoch, the reference's unit of progress."""


def sample_offsets(magic_prime: int, ctx_len: int, start: int, count: int) -> NDArray[np.int64]:
    """Return where the samples ``ii = start … start + count - 1`` begin in the token stream.

    Sample ``ii`` starts at token ``((f · ii³) mod p) · ctx_len`` with ``p = magic_prime`` and
    ``f = int(p · (√5 - 1) / 2)``. As ``p % 3 == 2``, cubing permutes the residues modulo p, so
    any p consecutive samples visit every slot once. One optimizer step of global batch G uses
    ``ii = 1 + step · G … step · G + G``, whatever the number of processes.

    Args:
        magic_prime: the dataset's prime (see ``rwkvkit.magic_prime``).
        ctx_len: tokens a sample.
        start: the first ``ii``; the reference counts from 1.
        count: how many samples.

    Returns:
        int64 array [count] of token offsets, computed in exact integers.
    """
    factor = int(magic_prime * (sqrt(5) - 1) / 2)
    slots = (factor * pow(ii, 3, magic_prime) % magic_prime for ii in range(start, start + count))
    return np.fromiter((slot * ctx_len for slot in slots), dtype=np.int64, count=count)


@dataclass(frozen=True)
class SampleReader:
    """Reads the samples of an optimizer step from a dataset in the reference's order.

    Attributes:
        data: the dataset.
        magic_prime: its prime for ``ctx_len``.
        ctx_len: tokens a sample (T below).
        vocab_size: ids must be below this.
        reason: why in this order, for people.
    """

    data: Binidx
    magic_prime: int
    ctx_len: int
    vocab_size: int
    reason: str = "order cubic"

    @property
    def once(self) -> int:
        """Tokens of the dataset."""
        return self.data.n_tokens

    @property
    def sample_tokens(self) -> int:
        """Tokens of a sample."""
        return self.ctx_len

    @property
    def lines(self) -> tuple[str, ...]:
        """The order and its prime, for people."""
        slots = f"{self.data.n_tokens:,} tokens / {self.ctx_len}"
        prime = f"magic_prime {self.magic_prime}: the largest 3n+2 prime below {slots}"
        return (self.reason, prime)

    def tokens(self, count: int) -> int:
        """Return the tokens of ``count`` samples."""
        return count * self.ctx_len

    def read(self, start: int, count: int) -> Batch:
        """Return samples ``start …`` (from 1), with a mask if the dataset has one.

        Raises:
            DataError: a token id does not fit the model's vocabulary.
        """
        starts = sample_offsets(self.magic_prime, self.ctx_len, start, count).tolist()
        length = self.ctx_len + 1
        tokens = np.stack([self.data.tokens(first, length) for first in starts]).astype(np.int64)
        check_vocabulary(tokens, self.vocab_size, self.data)
        mask = None
        if self.data.has_mask:
            columns = np.stack([self.data.mask(first, length) for first in starts])
            mask = torch.from_numpy(columns)[:, 1:]
        ids = torch.from_numpy(tokens)
        return Batch(ids[:, :-1], ids[:, 1:], mask)
