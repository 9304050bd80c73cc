"""What an optimizer step trains on, and who supplies it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """G samples of T tokens.

    Attributes:
        x: input ids, int64 [G, T].
        y: target ids, int64 [G, T]: the token after each input.
        mask: the weight of each target in the loss [G, T]; None: all equal.
        resets: bool [G, T], True where a new document starts; None: each sample is one text.
        segments: equal runs of tokens into which T is cut; the model trains on one after another
            and carries its state from each to the next.
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    resets: Tensor | None = None
    segments: int = 1

    @property
    def counted(self) -> float:
        """The weights of all targets together; their number without a mask."""
        return float(self.y.numel() if self.mask is None else self.mask.sum())

    def split(self, parts: int) -> "list[Batch]":
        """Cut into ``parts`` equal runs of samples, in order."""
        return self._chunks(parts, 0, self.segments)

    def cut(self) -> "list[Batch]":
        """Cut every sample into its segments, in order."""
        return self._chunks(self.segments, 1, 1)

    def _chunks(self, parts: int, axis: int, segments: int) -> "list[Batch]":
        columns = (
            [None] * parts if tensor is None else torch.chunk(tensor, parts, axis)
            for tensor in (self.x, self.y, self.mask, self.resets)
        )
        return [
            Batch(x, y, mask, resets, segments) for x, y, mask, resets in zip(*columns, strict=True)
        ]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        x, y = (tensor.to(device, non_blocking=True) for tensor in (self.x, self.y))
        return Batch(x, y, moved(self.mask), moved(self.resets), self.segments)


class Sampler(Protocol):
    """Numbers the samples of a run from 1, so that the position in the data is one integer.

    An optimizer step of global batch G trains on samples ``1 + step · G … step · G + G``, whatever
    the number of processes and of passes; a process may read any part of them. What comes after
    the last sample of a pass over the dataset is the next pass.
    """

    @property
    def once(self) -> int:
        """Tokens of one pass over the dataset, padding included."""

    @property
    def sample_tokens(self) -> float:
        """Tokens of a sample, padding included; their mean if they differ."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The order of the samples and what follows from it, for people."""

    def tokens(self, count: int) -> int:
        """Return the tokens of the first ``count`` samples, padding included."""

    def read(self, start: int, count: int) -> Batch:
        """Return samples ``start … start + count - 1``.

        Raises:
            DataError: a token id does not fit the model's vocabulary.
        """
