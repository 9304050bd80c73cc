"""The recurrence of RWKV-6, and of RWKV-5 as the case of a decay that is constant in time.

For one head, with the state S [key, value], the decay w_t = exp(log_w_t) over the key index and
the bonus u for the current token:

    y_t = r_t (S_{t-1} + diag(u) k_tᵀ v_t)
    S_t = diag(w_t) S_{t-1} + k_tᵀ v_t

B batch, T tokens, H heads, C chunks, L tokens in a chunk, N head size.
"""

import torch
from torch import Tensor

from rwkvkit.ops import chunks, inputs
from rwkvkit.ops.inputs import Impl, Needs

CHUNK = 32  # the fastest of 8, 16, 32 and 64, forward and backward on a CPU
KERNELS = {64: Needs(95744, 20800), 128: Needs(78848, 41536)}  # by head size


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    origin: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the RWKV-6 recurrence over T tokens; differentiable in every floating input.

    Computed in float32, in float64 if an input is, whatever autocast says. Any decay is exact
    but with ``cuda``: no exponent is clamped, and none is positive in either form.

    Args:
        r: receptance [B, T, H, N].
        k: key [B, T, H, N].
        v: value [B, T, H, N].
        log_w: logarithm of the decay [B, T, H, N], <= 0; [1, T, H, N] where the batch shares it,
            [H, N] where the tokens do, too.
        u: bonus of the current token [H, N].
        state: S [B, H, N, N] as [key, value] before the first token; None: ``origin``.
        resets: bool [B, T], True at a token before which the state becomes ``origin``.
        origin: the state of a document's start [H, N, N], [key, value]; None: zero.
        impl: ``naive`` (a loop over tokens), ``chunked`` (PyTorch products), ``cuda`` (kernels on
            tensor cores: inputs are rounded to v's bf16 or fp16, the state is fp32, and a decay
            below e^-10.4 is e^-10.4), ``precise`` (fp32 kernels; on a CPU PyTorch products with a
            backward pass of their own), or ``auto``; see ``ops.inputs.choose``.

    Returns:
        y [B, T, H, N] in v's dtype, and the state [B, H, N, N] after the last token in the
        precision of the computation.

    Raises:
        UsageError: shapes do not fit together, or ``impl`` is unknown or cannot run on them.
        SetupError: the kernels cannot be compiled.
    """
    batch, tokens, heads, size = r.shape
    if log_w.shape not in ((1, *r.shape[1:]), r.shape[2:]):
        inputs.check({"log_w": log_w}, {"log_w": tuple(r.shape)})
    optional = {"state": state, "resets": resets, "origin": origin}
    inputs.check(
        {"r": r, "k": k, "v": v, "u": u, **{n: x for n, x in optional.items() if x is not None}},
        {
            **dict.fromkeys("rkv", (batch, tokens, heads, size)),
            "u": (heads, size),
            "state": (batch, heads, size, size),
            "resets": (batch, tokens),
            "origin": (heads, size, size),
        },
    )
    dtype = inputs.compute_dtype(r, k, v, log_w, u, state, origin)
    choice = inputs.choose(impl, r.device, v.dtype, tokens, KERNELS.get(size))
    if choice.impl in ("cuda", "precise"):
        from rwkvkit.ops.cuda.wkv6 import wkv  # which imports this file

        precise = choice.impl == "precise"
        with inputs.no_autocast(r.device):
            return wkv(r, k, v, log_w, u, state, resets, origin, precise=precise)
    run = _naive if choice.impl == "naive" else _chunked
    log_w = log_w.expand(-1 if log_w.dim() == 4 else 1, tokens, heads, size)
    with inputs.no_autocast(r.device):
        y, final = run(
            r.to(dtype),
            k.to(dtype),
            v.to(dtype),
            log_w.to(dtype),
            u.to(dtype),
            inputs.first_state(state, origin, r, dtype),
            resets,
            None if origin is None else origin.to(dtype),
        )
    return y.to(v.dtype), final


def wkv5(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    origin: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the RWKV-5 recurrence over T tokens: :func:`wkv6` with a decay constant in time.

    Args:
        r: receptance [B, T, H, N].
        k: key [B, T, H, N].
        v: value [B, T, H, N].
        log_w: logarithm of the decay [H, N], <= 0.
        u: bonus of the current token [H, N].
        state: S [B, H, N, N] as [key, value] before the first token; None: ``origin``.
        resets: bool [B, T], True at a token before which the state becomes ``origin``.
        origin: the state of a document's start [H, N, N], [key, value]; None: zero.
        impl: as for :func:`wkv6`.

    Returns:
        y [B, T, H, N] in v's dtype, and the state [B, H, N, N] after the last token.

    Raises:
        UsageError: shapes do not fit together, or ``impl`` is unknown or cannot run on them.
        SetupError: the kernels cannot be compiled.
    """
    inputs.check({"log_w": log_w}, {"log_w": tuple(r.shape[2:])})
    return wkv6(r, k, v, log_w, u, state, resets, origin=origin, impl=impl)


def _naive(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor,
    resets: Tensor | None,
    origin: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step a token, as the formulas read. ``unbind``: indexing x[:, t] is O(T²) backward."""
    start = torch.zeros_like(state[:1]) if origin is None else origin
    fresh = None if resets is None else resets[:, :, None, None, None].unbind(1)
    y = []
    steps = zip(*(x.unbind(1) for x in (r, k, v, log_w.exp())), strict=True)
    for t, (r_t, k_t, v_t, w_t) in enumerate(steps):
        if fresh is not None:
            state = torch.where(fresh[t], start, state)
        kv = k_t[..., :, None] * v_t[..., None, :]
        y.append((r_t[..., None, :] @ (state + u[..., None] * kv)).squeeze(-2))
        state = w_t[..., None] * state + kv
    return torch.stack(y, 1), state


def _chunked(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor,
    resets: Tensor | None,
    origin: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Matrix products inside chunks, a loop over the chunks' states only."""
    tokens = r.shape[1]
    length = min(CHUNK, 1 << (tokens - 1).bit_length())
    r, k, v, log_w = (chunks.split(x, length) for x in (r, k, v, log_w))

    scores, before, after, total = _scores(r, k, log_w, u)
    reads = r * before.exp()
    writes = k * after.exp()
    keeps = total.exp().mT
    if resets is not None:
        parts = chunks.Segments.of(resets, length, r.dtype)
        scores = scores * parts.same
        reads, writes, keeps = reads * parts.first, writes * parts.last, keeps * parts.whole

    y = scores @ v
    added = writes.mT @ v
    if resets is not None and origin is not None:
        since = parts.log_decay_before(log_w)
        start = origin[:, None]
        y = y + (r * since.exp() * (1 - parts.first)) @ start
        added = added + (since + log_w)[..., -1:, :].exp().mT * start * (1 - parts.whole)

    entering = []
    for keep, add in zip(keeps.unbind(2), added.unbind(2), strict=True):
        entering.append(state)
        state = torch.addcmul(add, keep, state)
    y = y + reads @ torch.stack(entering, 2)
    return chunks.join(y, tokens), state


def _scores(
    r: Tensor, k: Tensor, log_w: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weight of token s in the output at token t of a chunk, by recursive halving.

    The weight is Σ_n r_t k_s exp(sum of log_w strictly between s and t) for s < t, and
    Σ_n r_t u k_t for s = t. A pair (t, s) is met at the one level where t lies in the second half
    of a block and s in its first. There the sum splits at the border between the halves into two
    sums, each local to its half and <= 0: the products cannot overflow, and no difference of large
    sums loses digits, however strong the decay.

    Args:
        r: [B, H, C, L, N], L a power of two; k likewise.
        k: see r.
        log_w: [B or 1, H, C, L, N].
        u: [H, N].

    Returns:
        The weights [B, H, C, L, L]; and, over the whole chunk, the sums of log_w before each
        token [.., L, N], after each token [.., L, N], and in total [.., 1, N].
    """
    scores = (r * u[:, None, None] * k).sum(-1)[..., None, None]  # blocks of one token
    total = log_w[..., None, :]
    before = after = torch.zeros_like(total)
    half = 1
    while half < r.shape[-2]:
        _, r_late = _halves(r.unflatten(-2, (-1, half)))
        k_early, _ = _halves(k.unflatten(-2, (-1, half)))
        before_early, before_late = _halves(before)
        after_early, after_late = _halves(after)
        total_early, total_late = _halves(total)
        if half == 1:  # neighbours: nothing decays between them
            cross = (r_late * k_early).sum(-1, keepdim=True)
        else:
            cross = (r_late * before_late.exp()) @ (k_early * after_early.exp()).mT
        top, bottom = _halves(scores)
        top = torch.cat([top, torch.zeros_like(cross)], -1)
        scores = torch.cat([top, torch.cat([cross, bottom], -1)], -2)
        before = torch.cat([before_early, before_late + total_early], -2)
        after = torch.cat([after_early + total_late, after_late], -2)
        total = total_early + total_late
        half *= 2
    return scores.squeeze(-3), before.squeeze(-3), after.squeeze(-3), total.squeeze(-3)


def _halves(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[.., 2n, h, N] -> the first and the second of each two blocks, [.., n, h, N]."""
    first, second = blocks.unflatten(-3, (-1, 2)).unbind(-3)
    return first, second
