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


def prepare_keys(
    k: Tensor,
    w: Tensor,
    rate: Tensor,
    *,
    w0: Tensor,
    a0: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    heads: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make what WKV takes beside r and v. Weights a channel are [1, 1, C].

    Args:
        k: keys [B, T, C].
        w: what is added to w0 [B, T, C].
        rate: what is added to a0 [B, T, C].
        w0: the decay before its squashing.
        a0: the in-context learning rate before its sigmoid.
        k_k: scale of the removed key.
        k_a: how much the learning rate counts for the written key.
        heads: H and N.

    Returns:
        log_w, k, a = -kk and b = kk * rate of ``rwkvkit.ops.wkv7``, each [B, T, H, N].
    """
    log_w = LOG_W_SCALE * torch.sigmoid(wide(w0) + wide(w))
    rate = torch.sigmoid(a0 + rate)
    kk = F.normalize(wide(k * k_k).unflatten(-1, heads), dim=-1)
    k = k * (1 + (rate - 1) * k_a)
    log_w, k, rate = (x.unflatten(-1, heads) for x in (log_w, k, rate))
    return log_w, k, -kk, kk * rate


def residual_value(v: Tensor, v_first: Tensor, gate: Tensor, v0: Tensor) -> Tensor:
    """Move v towards the values of the first layer, by the share sigmoid(v0 + gate).

    Args:
        v: [B, T, C].
        v_first: [B, T, C].
        gate: [B, T, C].
        v0: [1, 1, C].
    """
    return torch.lerp(v, v_first, torch.sigmoid(v0 + gate))


def norm_gate(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    r_k: Tensor,
    eps: float,
) -> Tensor:
    """Norm what WKV returns by head, add the bonus of the token itself, and gate: (n + s v) g.

    Args:
        y: [B, T, H, N].
        r: [B, T, H, N].
        k: [B, T, H, N].
        v: [B, T, H, N].
        g: [B, T, C].
        weight: of the norm [C].
        bias: of the norm [C].
        r_k: weights of the bonus s = Σ r k r_k, [H, N].
        eps: added to the variance.

    Returns:
        [B, T, C].
    """
    normed = F.group_norm(y.flatten(0, 1).flatten(1), y.shape[2], weight, bias, eps).view_as(g)
    bonus = (r * k * r_k).sum(-1, keepdim=True) * v
    return (normed + bonus.flatten(-2)) * g
