"""WKV7 as registered operators: forward and backward, on a GPU the kernels, elsewhere plain loops.

Registered, they go through ``torch.compile``, fake tensors and activation checkpointing as torch's
own operators do.

B batch, T tokens, H heads, C chunks, N head size.
"""

from typing import Any

import torch
from torch import Tensor

from rwkvkit.ops.cuda import wkv7_kernels, wkv7_plain
from rwkvkit.ops.cuda.wkv7_kernels import Shape
from rwkvkit.ops.inputs import compute_dtype


def wkv7(
    vectors: tuple[Tensor, ...],
    state: Tensor | None,
    origin: Tensor | None,
    resets: Tensor | None,
    *,
    precise: bool,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of ``rwkvkit.ops.rwkv7``; differentiable in every floating input.

    Args:
        vectors: r, log_w, k, v, a, b [B, T, H, N], all in one type: bf16 or fp16, or what
            ``precise`` computes in.
        state: [B, H, N, N] before the first token, fp32; None: zero.
        origin: [H, N, N] at a document's start, fp32; None: zero.
        resets: bool [B, T] or None.
        precise: the fp32 loop instead of the chunked tensor-core form.

    Returns:
        y [B, T, H, N] in the vectors' type, and the last state [B, H, N, N] in fp32, for float64
        vectors in float64.
    """
    differentiated = any(x is not None and x.requires_grad for x in (*vectors, state, origin))
    keep = differentiated and torch.is_grad_enabled()
    made = [x.contiguous() for x in vectors]
    matrices = (x if x is None else x.contiguous() for x in (state, origin, resets))
    y, final, _ = wkv7_forward(*made, *matrices, precise, keep)
    return y, final


@torch.library.custom_op("rwkvkit::wkv7_forward", mutates_args=())
def wkv7_forward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    origin: Tensor | None,
    resets: Tensor | None,
    precise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state and, if ``keep``, what the backward pass needs."""
    vectors = (r, log_w, k, v, a, b)
    if r.is_cuda and precise:
        return wkv7_kernels.precise_forward(vectors, state, origin, resets, keep=keep)
    if r.is_cuda:
        shape = _shape(r, resets)
        return wkv7_kernels.forward(shape, vectors, state, origin, resets, keep=keep)
    y, final, checkpoints = wkv7_plain.forward(vectors, state, origin, resets, keep=keep)
    return y, final, checkpoints.to(_checkpoint_dtype(r, precise))


@wkv7_forward.register_fake
def _(r: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    precise, keep = others[-2:]
    batch, tokens, heads, size = r.shape
    final = r.new_empty(batch, heads, size, size, dtype=compute_dtype(r))
    count = (tokens + wkv7_kernels.CHUNK - 1) // wkv7_kernels.CHUNK if keep else 0
    checkpoints = r.new_empty(batch, heads, count, size, size, dtype=_checkpoint_dtype(r, precise))
    return torch.empty_like(r), final, checkpoints


@torch.library.custom_op("rwkvkit::wkv7_backward", mutates_args=())
def wkv7_backward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    dy: Tensor,
    origin: Tensor | None,
    resets: Tensor | None,
    checkpoints: Tensor,
    dfinal: Tensor | None,
    precise: bool,
    want_state: bool,
    want_origin: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the vectors, the first state and the origin; empty if not wanted."""
    vectors = (r, log_w, k, v, a, b)
    dstate: Tensor | None
    dorigin: Tensor | None
    if not r.is_cuda:
        gradients, dstate, dorigin = wkv7_plain.backward(
            vectors, dy, origin, resets, checkpoints, dfinal
        )
    elif precise:
        gradients, dstate, dorigin = wkv7_kernels.precise_backward(
            vectors,
            dy,
            origin,
            resets,
            checkpoints,
            dfinal,
            want_state=want_state,
            want_origin=want_origin,
        )
    else:
        gradients, dstate, dorigin = wkv7_kernels.backward(
            _shape(r, resets),
            vectors,
            dy,
            origin,
            resets,
            checkpoints,
            dfinal,
            want_state=want_state,
            want_origin=want_origin,
        )
    empty = dy.new_empty(0, dtype=compute_dtype(r))
    dr, dlog_w, dk, dv, da, db = gradients
    return (
        dr,
        dlog_w,
        dk,
        dv,
        da,
        db,
        dstate if dstate is not None and want_state else empty,
        dorigin if dorigin is not None and want_origin else empty.clone(),
    )


@wkv7_backward.register_fake
def _(
    r: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    want_state, want_origin = others[-2:]
    batch, _, heads, size = r.shape
    like = r.new_empty(0, dtype=compute_dtype(r))
    return (
        torch.empty_like(r),
        torch.empty_like(r),
        torch.empty_like(r),
        torch.empty_like(r),
        torch.empty_like(r),
        torch.empty_like(r),
        like.new_empty((batch, heads, size, size) if want_state else (0,)),
        like.new_empty((heads, size, size) if want_origin else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *vectors, state, origin, resets, precise, _ = inputs
    ctx.save_for_backward(*vectors, origin, resets, output[2])
    ctx.precise = precise
    ctx.wants = (state is not None, origin is not None)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *vectors, origin, resets, checkpoints = ctx.saved_tensors
    dy = torch.zeros_like(vectors[3]) if dy is None else dy.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    want_state, want_origin = ctx.wants
    *gradients, dstate, dorigin = wkv7_backward(
        *vectors, dy, origin, resets, checkpoints, dfinal, ctx.precise, want_state, want_origin
    )
    return (
        *gradients,
        dstate if want_state else None,
        dorigin if want_origin else None,
        None,
        None,
        None,
    )


wkv7_forward.register_autograd(_backward, setup_context=_setup_context)


def _shape(r: Tensor, resets: Tensor | None) -> Shape:
    return wkv7_kernels.usual_shape(
        r.shape[-1], fp16=r.dtype == torch.float16, resets=resets is not None
    )


def _checkpoint_dtype(x: Tensor, precise: bool) -> torch.dtype:
    return compute_dtype(x) if precise else x.dtype
