"""The WKV6 and WKV5 kernels as torch operators.

On a GPU they run the kernels. On a CPU they run the same mathematics in plain PyTorch, so that
everything around them (shapes, gradients, compiling, checkpointing) is what it is on a GPU.

B batch, T tokens, H heads, N head size.
"""

from typing import Any

import torch
from torch import Tensor

from rwkvkit.ops import inputs, rwkv6
from rwkvkit.ops.cuda import wkv6_kernels as kernels


def wkv(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    origin: Tensor | None,
    *,
    precise: bool,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; differentiable in every floating input.

    Args:
        r: receptance [B, T, H, N]; k and v likewise.
        k: key.
        v: value, bf16 or fp16; what else comes is taken as bf16. ``precise``: as fp32.
        log_w: logarithm of the decay [B, T, H, N], or [H, N] for WKV5.
        u: bonus of the current token [H, N].
        state: [B, H, N, N] as [key, value] before the first token; None: the origin.
        resets: bool [B, T], True at a token before which the state becomes the origin.
        origin: the state of a document's start [H, N, N]; None: zero.
        precise: take the recurrent kernels, fp32 throughout (on a CPU float64, if an input is).

    Returns:
        y [B, T, H, N] in v's type, and the state after the last token, fp32 [B, H, N, N] (on a
        CPU float64, if an input is).
    """
    exact = torch.float32
    if not _on_gpu(r):
        exact = inputs.compute_dtype(r, k, v, log_w, u, state, origin)
    dtype = exact
    if not precise:
        dtype = torch.float16 if v.dtype == torch.float16 else torch.bfloat16
    batch = r.shape[0]
    y_added = state_added = None
    if origin is not None:
        if resets is not None:
            y_added, state_added = _from_origin(r, log_w, origin, resets, exact)
        if state is None:
            state = origin.expand(batch, *origin.shape)
    decay = log_w.to(exact) if log_w.dim() == 2 else log_w.to(dtype).expand(batch, -1, -1, -1)
    tensors = (
        *(x.to(dtype).contiguous() for x in (r, k, v)),
        decay.contiguous(),
        u.to(exact).contiguous(),
        None if state is None else state.to(exact).contiguous(),
    )
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    starts = None if resets is None else resets.contiguous()
    y, final, _ = _forward(*tensors, starts, precise, keep)
    if y_added is not None and state_added is not None:
        y, final = y + y_added, final + state_added
    return y.to(v.dtype), final


def _from_origin(
    r: Tensor, log_w: Tensor, origin: Tensor, resets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What the origin adds to the outputs of a run whose documents start from zero.

    The recurrence is linear in the state: the origin of a token's document reaches it through the
    decays since the document's start. Sums of logarithms are float64: they are differences of sums
    over the whole sequence.
    """
    tokens = r.shape[1]
    rate = log_w.double().clamp_min(-80).expand(r.shape)  # e^-80 is nothing beside any fp32 number
    upto = rate.cumsum(1)
    position = torch.arange(tokens, device=r.device).expand(resets.shape)
    start = torch.where(resets, position, -1).cummax(1).values
    begun = (start >= 0)[..., None, None]
    before = upto - rate
    at_start = before.gather(1, start.clamp_min(0)[..., None, None].expand(upto.shape))
    since = torch.where(begun, (before - at_start).exp(), 0).to(dtype)
    y = torch.einsum("bthi,hij->bthj", r.to(dtype) * since, origin.to(dtype))
    whole = torch.where(begun[:, -1], (upto - at_start)[:, -1].exp(), 0).to(dtype)
    return y, whole[..., None] * origin.to(dtype)


@torch.library.custom_op("rwkvkit::wkv6_forward", mutates_args=())
def _forward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    precise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Y, the last state, and what the backward pass needs; see ``wkv6_kernels.forward``."""
    given = (r, k, v, log_w, u, state, resets)
    if not _on_gpu(r):
        y, final = _plain(*given)
        return y, final, _checkpoints(r, precise, keep).zero_()
    if precise:
        return kernels.precise_forward(*given, keep=keep)
    return kernels.forward(_shape(r, resets), *given, keep=keep)


@_forward.register_fake
def _(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    precise, keep = others[-2:]
    batch, _, heads, size = r.shape
    final = u.new_empty(batch, heads, size, size)
    return torch.empty_like(r), final, _checkpoints(r, precise, keep)


@torch.library.custom_op("rwkvkit::wkv6_backward", mutates_args=())
def _backward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
    precise: bool,
    want_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of r, k, v, log_w, u and, if wanted, of the first state (else it is empty)."""
    if not _on_gpu(r):
        return _plain_gradients(r, k, v, log_w, u, state, resets, dy, dfinal, want_state)
    given = (r, k, v, log_w, u, resets, checkpoints, dy, dfinal)
    if precise:
        *gradients, dstate = kernels.precise_backward(*given, want_state=want_state)
    else:
        shape = _shape(r, resets)
        *gradients, dstate = kernels.backward(shape, *given, want_state=want_state)
    dr, dk, dv, dlog_w, du = gradients
    return dr, dk, dv, dlog_w, du, u.new_empty(0) if dstate is None else dstate


@_backward.register_fake
def _(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    want_state = others[-1]
    batch, _, heads, size = r.shape
    square = (batch, heads, size, size) if want_state else (0,)
    like = (torch.empty_like(x) for x in (r, k, v, log_w, u))
    return (*like, u.new_empty(square))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.precise, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    r = tensors[0]
    dy = torch.zeros_like(r) if dy is None else dy.contiguous()
    if dfinal is not None:
        dfinal = dfinal.contiguous()
    want_state = ctx.needs_input_grad[5]
    *gradients, dstate = _backward(
        *tensors,
        checkpoints,
        dy,
        dfinal,
        ctx.precise,
        want_state,
    )
    return (*gradients, dstate if want_state else None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_keep)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _shape(r: Tensor, resets: Tensor | None) -> kernels.Shape:
    return kernels.Shape(r.shape[-1], r.dtype == torch.float16, resets is not None)


def _checkpoints(r: Tensor, precise: bool, keep: bool) -> Tensor:
    """Memory for what the backward pass needs, none unless ``keep``."""
    batch, tokens, heads, size = r.shape
    count = -(-tokens // kernels.CHUNK) if precise else kernels.Shape(size).checkpoints(tokens)
    return r.new_empty(batch, heads, count if keep else 0, size, size, dtype=torch.float32)


def _plain(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch: y in v's type, the last state in fp32."""
    run = rwkv6.wkv6 if log_w.dim() == 4 else rwkv6.wkv5
    y, final = run(r, k, v, log_w, u, state, resets, impl="chunked")
    return y.contiguous(), final.contiguous()


def _plain_gradients(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    dy: Tensor,
    dfinal: Tensor | None,
    want_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in plain PyTorch, token by token (there is no autograd inside an operator)."""
    batch, tokens, heads, size = r.shape
    fresh = torch.zeros_like(r[..., 0, 0], dtype=torch.bool) if resets is None else resets
    keeps = (~fresh)[..., None, None, None].unbind(1)
    r_, k_, v_, dy_ = (x.to(u.dtype).unbind(1) for x in (r, k, v, dy))
    w = log_w.to(u.dtype).exp().expand(r.shape).unbind(1)
    entering = []
    s = u.new_zeros(batch, heads, size, size) if state is None else state
    for t in range(tokens):
        s = s * keeps[t]
        entering.append(s)
        s = w[t][..., None] * s + k_[t][..., :, None] * v_[t][..., None, :]

    d = torch.zeros_like(s) if dfinal is None else dfinal
    gradients = []
    for t in reversed(range(tokens)):
        e = (dy_[t] * v_[t]).sum(-1, keepdim=True)
        bonus = (r_[t] * u * k_[t]).sum(-1, keepdim=True)
        gradients.append(
            (
                torch.einsum("bhij,bhj->bhi", entering[t], dy_[t]) + u * k_[t] * e,
                torch.einsum("bhij,bhj->bhi", d, v_[t]) + u * r_[t] * e,
                torch.einsum("bhij,bhi->bhj", d, k_[t]) + dy_[t] * bonus,
                w[t] * (d * entering[t]).sum(-1),
                r_[t] * k_[t] * e,
            )
        )
        d = (w[t][..., None] * d + r_[t][..., :, None] * dy_[t][..., None, :]) * keeps[t]
    dr, dk, dv, dlog_w, du = (torch.stack(x[::-1], 1) for x in zip(*gradients, strict=True))
    if log_w.dim() == 2:
        dlog_w = dlog_w.sum((0, 1))
    first = d.contiguous() if want_state else u.new_empty(0)
    return dr.to(r), dk.to(k), dv.to(v), dlog_w.to(log_w), du.sum((0, 1)), first
