"""What RWKV does to each token between matrix products and WKV, in plain PyTorch.

For RWKV-7 these are the truth that the kernels of ``rwkvkit.ops.fused`` are compared with; both
have the same functions, so that the model takes the one or the other.

B batch, T tokens, C n_embd, H heads, N head size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_W_SCALE = -math.exp(-0.5)


def wide(x: Tensor) -> Tensor:
    """Take at least float32, for what must not be rounded to bfloat16: decays, norms."""
    return x if x.dtype == torch.float64 else x.float()


def shift(x: Tensor, last: Tensor | None, resets: Tensor | None) -> Tensor:
    """The input of the token before.

    Args:
        x: [B, T, C].
        last: what came before the first token [B, C], or None for zero.
        resets: bool [B, T]; zero comes before a token where it is True.

    Returns:
        [B, T, C].
    """
    before = torch.zeros_like(x[:, 0]) if last is None else last.to(x.dtype)
    previous = torch.cat([before[:, None], x[:, :-1]], 1)
    return previous if resets is None else previous.masked_fill(resets[..., None], 0)


def shift_mix(
    x: Tensor, last: Tensor | None, resets: Tensor | None, mixes: Sequence[Tensor]
) -> list[Tensor]:
    """Mix each token with the one before: x + (shift(x) - x) * mix, once for each mix.

    Args:
        x: [B, T, C].
        last: see :func:`shift`.
        resets: see :func:`shift`.
        mixes: weights a channel, each [1, 1, C].

    Returns:
        As many tensors [B, T, C].
    """
    xx = shift(x, last, resets) - x
    return [torch.addcmul(x, xx, mix) for mix in mixes]


def relu_squared(x: Tensor) -> Tensor:
    """The square of what is positive."""
    return F.relu(x).square()
