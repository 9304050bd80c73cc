"""The token-shift mix, the value residual and the squared relu as registered operators.

On a GPU, in bf16 and fp16, they are kernels, elsewhere the plain form. B batch, T tokens, C n_embd.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkvkit.ops import elementwise
from rwkvkit.ops.cuda import elementwise_kernels as kernels
from rwkvkit.ops.cuda.compile import Program


@torch.library.custom_op("rwkvkit::shift_mix", mutates_args=())
def shift_mix(
    x: Tensor, last: Tensor | None, resets: Tensor | None, mixes: Sequence[Tensor]
) -> list[Tensor]:
    """See ``rwkvkit.ops.elementwise.shift_mix``; all in one type, mixes [C], contiguous."""
    if kernels.takes(x):
        return kernels.shift_mix_forward(x, last, resets, mixes)
    return elementwise.shift_mix(x, last, resets, mixes)


@shift_mix.register_fake
def _(
    x: Tensor, last: Tensor | None, resets: Tensor | None, mixes: Sequence[Tensor]
) -> list[Tensor]:
    return [torch.empty_like(x) for _ in mixes]


@torch.library.custom_op("rwkvkit::shift_mix_backward", mutates_args=())
def shift_mix_backward(
    x: Tensor,
    last: Tensor | None,
    resets: Tensor | None,
    mixes: Sequence[Tensor],
    grads: Sequence[Tensor],
    want_mixes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, last [B, C] and the mixes [M, C]; empty if not wanted."""
    if kernels.takes(x):
        dx, dlast, dmixes = kernels.shift_mix_backward(
            x, last, resets, mixes, grads, want_mixes=want_mixes
        )
        empty = x.new_empty(0)
        return (
            dx,
            empty if dlast is None else dlast,
            x.new_empty(0) if dmixes is None else dmixes.to(x.dtype),
        )
    change = elementwise.shift(x, last, resets) - x
    back = sum((grad * mix for grad, mix in zip(grads, mixes, strict=True)), torch.zeros_like(x))
    kept = back if resets is None else back.masked_fill(resets[..., None], 0)
    dx = sum(grads, torch.zeros_like(x)) - back
    dx[:, :-1] += kept[:, 1:]
    dlast = x.new_empty(0) if last is None else kept[:, 0].clone()
    each = [(grad * change).sum((0, 1)) for grad in grads] if want_mixes else []
    return dx, dlast, torch.stack(each) if each else x.new_empty(0)


@shift_mix_backward.register_fake
def _(
    x: Tensor,
    last: Tensor | None,
    resets: Tensor | None,
    mixes: Sequence[Tensor],
    grads: Sequence[Tensor],
    want_mixes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dlast = x.new_empty(0) if last is None else torch.empty_like(last)
    dmixes = x.new_empty((len(mixes), x.shape[-1]) if want_mixes else (0,))
    return torch.empty_like(x), dlast, dmixes


def _save_shift_mix(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, last, resets, mixes = inputs
    ctx.save_for_backward(x, last, resets, *mixes)


def _shift_mix_gradients(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, last, resets, *mixes = ctx.saved_tensors
    want_mixes = any(ctx.needs_input_grad[3])
    grads = [grad.contiguous() for grad in grads]
    dx, dlast, dmixes = shift_mix_backward(x, last, resets, mixes, grads, want_mixes)
    each = list(dmixes.unbind(0)) if want_mixes else [None] * len(mixes)
    return dx, None if last is None else dlast, None, each


shift_mix.register_autograd(_shift_mix_gradients, setup_context=_save_shift_mix)


@torch.library.custom_op("rwkvkit::relu_squared", mutates_args=())
def relu_squared(x: Tensor) -> Tensor:
    """See ``rwkvkit.ops.elementwise.relu_squared``; contiguous, a multiple of 8 elements."""
    return kernels.relu_squared(x) if kernels.takes(x) else elementwise.relu_squared(x)


@relu_squared.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("rwkvkit::relu_squared_backward", mutates_args=())
def relu_squared_backward(out: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of x from the output."""
    return kernels.relu_squared(out, grad) if kernels.takes(out) else 2 * out.sqrt() * grad


@relu_squared_backward.register_fake
def _(out: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(out)


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)  # the next product keeps it, too; x need not be kept


def _relu_squared_gradient(ctx: Any, grad: Tensor) -> Tensor:
    result: Tensor = relu_squared_backward(*ctx.saved_tensors, grad.contiguous())
    return result


relu_squared.register_autograd(_relu_squared_gradient, setup_context=_save_output)


@torch.library.custom_op("rwkvkit::residual_value", mutates_args=())
def residual_value(v: Tensor, v_first: Tensor, gate: Tensor, v0: Tensor) -> Tensor:
    """See ``rwkvkit.ops.elementwise.residual_value``; contiguous, v0 [C]."""
    if kernels.takes(v):
        out = torch.empty_like(v)
        inputs = (v, v_first, gate, v0)
        kernels.run_rows(_value_program(v), "residual_value_forward", inputs, (out,))
        return out
    return elementwise.residual_value(v, v_first, gate, v0)


def _value_program(v: Tensor) -> Program:
    return kernels.row_program("residual_value.cu", fp16=kernels.is_half(v))


@residual_value.register_fake
def _(v: Tensor, v_first: Tensor, gate: Tensor, v0: Tensor) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("rwkvkit::residual_value_backward", mutates_args=())
def residual_value_backward(
    grad: Tensor, v: Tensor, v_first: Tensor, gate: Tensor, v0: Tensor, want_v0: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of v, v_first, gate and, if wanted, v0 [C]."""
    if kernels.takes(v):
        dv, dv_first, dgate = (torch.empty_like(v) for _ in range(3))
        sums = kernels.run_rows(
            _value_program(v),
            "residual_value_backward",
            (grad, v, v_first, gate, v0),
            (dv, dv_first, dgate),
            1 if want_v0 else 0,
            backward=True,
        )
        empty = v.new_empty(0)
        return dv, dv_first, dgate, empty if sums is None else sums[0].to(v.dtype)
    share = torch.sigmoid(v0 + gate)
    dv_first = grad * share
    dgate = dv_first * (v_first - v) * (1 - share)
    dv0 = dgate.sum((0, 1)) if want_v0 else v.new_empty(0)
    return grad - dv_first, dv_first, dgate, dv0


@residual_value_backward.register_fake
def _(
    grad: Tensor, v: Tensor, v_first: Tensor, gate: Tensor, v0: Tensor, want_v0: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dv0 = v.new_empty((v.shape[-1] if want_v0 else 0,))
    return torch.empty_like(v), torch.empty_like(v), torch.empty_like(v), dv0


def _save_values(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _value_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    want_v0 = ctx.needs_input_grad[3]
    *vectors, dv0 = residual_value_backward(grad.contiguous(), *ctx.saved_tensors, want_v0)
    return *vectors, dv0 if want_v0 else None


residual_value.register_autograd(_value_gradients, setup_context=_save_values)
