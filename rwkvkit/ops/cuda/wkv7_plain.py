"""What the WKV7 kernels compute, in plain PyTorch: for tensors that are not on a GPU.

Token by token, the backward pass by the derivative formulas of ``docs/kernels.md``.

B batch, T tokens, H heads, C chunks, N head size.
"""

import torch
from torch import Tensor

from rwkvkit.ops.cuda.wkv7_kernels import CHUNK
from rwkvkit.ops.inputs import compute_dtype


def forward(
    vectors: tuple[Tensor, ...],
    state: Tensor | None,
    origin: Tensor | None,
    resets: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state and the states before each chunk [B, H, C or 0, N, N].

    Args:
        vectors: r, log_w, k, v, a, b [B, T, H, N].
        state: [B, H, N, N] before the first token; None: zero.
        origin: [H, N, N] at a document's start; None: zero.
        resets: bool [B, T] or None.
        keep: whether to return the states before each chunk, or none.
    """
    dtype = compute_dtype(vectors[0])
    batch, _, heads, size = vectors[0].shape
    like = vectors[0].new_zeros(batch, heads, size, size, dtype=dtype)
    s = like if state is None else state.to(dtype)
    y, kept = [], []
    for t, (r, w, k, v, a, b) in enumerate(_steps(vectors, dtype)):
        if t % CHUNK == 0:
            kept.append(s)
        s = _restart(s, t, origin, resets)
        s = _step(s, w, k, v, a, b)[0]
        y.append((s @ r[..., None]).squeeze(-1))
    checkpoints = torch.stack(kept, 2) if keep else like.new_empty(batch, heads, 0, size, size)
    return torch.stack(y, 1).to(vectors[3].dtype), s.clone(), checkpoints


def backward(
    vectors: tuple[Tensor, ...],
    dy: Tensor,
    origin: Tensor | None,
    resets: Tensor | None,
    checkpoints: Tensor,
    dfinal: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return the gradients of the vectors, of the first state and of the origin [H, N, N]."""
    dtype = compute_dtype(dy)
    batch, tokens, heads, size = dy.shape
    d = dy.new_zeros(batch, heads, size, size, dtype=dtype)
    dorigin = torch.zeros_like(d)
    if dfinal is not None:
        d = d + dfinal
    steps, dys = _steps(vectors, dtype), dy.to(dtype).unbind(1)
    gradients: list[list[Tensor]] = []
    for chunk in reversed(range(checkpoints.shape[2])):
        s = checkpoints[:, :, chunk].to(dtype)
        before, behind = [], []
        inside = range(chunk * CHUNK, min(tokens, (chunk + 1) * CHUNK))
        for t in inside:
            s = _restart(s, t, origin, resets)
            _, w, k, v, a, b = steps[t]
            before.append(s)
            s, _ = _step(s, w, k, v, a, b)
            behind.append(s)
        for t in reversed(inside):
            r, w, k, v, a, b = steps[t]
            s = before[t - chunk * CHUNK]
            sa = (s @ a[..., None]).squeeze(-1)
            d = d + dys[t][..., :, None] * r[..., None, :]
            dsa = (d @ b[..., None]).squeeze(-1)
            dr = (behind[t - chunk * CHUNK].mT @ dys[t][..., None]).squeeze(-1)
            dlog_w = (d * s).sum(-2) * w
            dk = (d.mT @ v[..., None]).squeeze(-1)
            dv = (d @ k[..., None]).squeeze(-1)
            da = (s.mT @ dsa[..., None]).squeeze(-1)
            db = (d.mT @ sa[..., None]).squeeze(-1)
            gradients.append([dr, dlog_w, dk, dv, da, db])
            d = d * w[..., None, :] + dsa[..., :, None] * a[..., None, :]
            if resets is not None:
                starts = resets[:, t, None, None, None]
                dorigin = dorigin + torch.where(starts, d, 0)
                d = torch.where(starts, 0, d)
    stacked = [torch.stack(x[::-1], 1) for x in zip(*gradients, strict=True)]
    typed = tuple(x.to(vector.dtype) for x, vector in zip(stacked, vectors, strict=True))
    return typed, d, dorigin.sum(0)


def _steps(vectors: tuple[Tensor, ...], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Return r, w, k, v, a, b of each token."""
    r, log_w, *rest = (x.to(dtype) for x in vectors)
    return list(zip(*(x.unbind(1) for x in (r, log_w.exp(), *rest)), strict=True))


def _restart(s: Tensor, t: int, origin: Tensor | None, resets: Tensor | None) -> Tensor:
    if resets is None:
        return s
    start = torch.zeros_like(s[:1]) if origin is None else origin.to(s.dtype)
    return torch.where(resets[:, t, None, None, None], start, s)


def _step(
    s: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the state behind the token, and what the token read to replace."""
    sa = (s @ a[..., None]).squeeze(-1)
    s = s * w[..., None, :] + sa[..., :, None] * b[..., None, :]
    return s + v[..., :, None] * k[..., None, :], sa
