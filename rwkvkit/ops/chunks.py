"""Cutting a sequence into chunks, and what document starts ("resets") mean inside a chunk.

B batch, T tokens, H heads, C chunks, L tokens in a chunk, N head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def split(x: Tensor, length: int) -> Tensor:
    """[B, T, H, N] -> [B, H, C, L, N], with zeros behind the last token."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % length))
    return x.unflatten(1, (-1, length)).permute(0, 3, 1, 2, 4).contiguous()


def join(x: Tensor, tokens: int) -> Tensor:
    """[B, H, C, L, N] -> [B, T, H, N], without the padding."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens]


@dataclass(frozen=True)
class Segments:
    """The parts into which document starts cut each chunk; 0 and 1 in the compute dtype.

    Attributes:
        same: [B, 1, C, L, L], tokens t and s lie in the same part.
        first: [B, 1, C, L, 1], no document starts in the chunk up to the token, so the state that
            enters the chunk reaches it.
        last: [B, 1, C, L, 1], no document starts behind the token, so it reaches the state that
            leaves the chunk.
        whole: [B, 1, C, 1, 1], no document starts in the chunk.
    """

    same: Tensor
    first: Tensor
    last: Tensor
    whole: Tensor

    @classmethod
    def of(cls, resets: Tensor, length: int, dtype: torch.dtype) -> "Segments":
        """Build them from ``resets``, bool [B, T], True where a document starts."""
        resets = F.pad(resets, (0, -resets.shape[1] % length))
        part = resets.unflatten(1, (-1, length)).cumsum(-1)[:, None]
        end = part[..., -1:]
        return cls(
            same=(part[..., :, None] == part[..., None, :]).to(dtype),
            first=(part == 0).to(dtype)[..., None],
            last=(part == end).to(dtype)[..., None],
            whole=(end == 0).to(dtype)[..., None],
        )

    def log_decay_before(self, log_w: Tensor) -> Tensor:
        """Sum the log decays between a part's start and each token, the token's own left out.

        Summed inside the part, not as a difference of sums over the chunk: exact where an earlier
        part decays much faster.

        Args:
            log_w: [B, H, C, L, N].

        Returns:
            [B, H, C, L, N].
        """
        return self.same.tril(-1) @ log_w
