"""What is done by head before and after WKV7, as registered operators.

On a GPU, in bf16 and fp16, they are kernels, elsewhere the plain form. An operator's tensors are
contiguous and of one type. B batch, T tokens, H heads, N head size, C = H N.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.ops import elementwise
from rwkvkit.ops.cuda import elementwise_kernels as kernels
from rwkvkit.ops.cuda.compile import Program

_EPS = 1e-12  # of a key's norm, as torch.nn.functional.normalize has it


def _program(file: str, x: Tensor, width: int) -> Program:
    return kernels.row_program(file, width=width, fp16=kernels.is_half(x))


def _sums(sums: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if sums is None else sums.to(like.dtype)


@torch.library.custom_op("rwkvkit::prepare_keys", mutates_args=())
def prepare_keys(
    k: Tensor,
    w: Tensor,
    rate: Tensor,
    w0: Tensor,
    a0: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    heads: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``rwkvkit.ops.elementwise.prepare_keys``; weights are [C], results of k's type."""
    if kernels.takes(k):
        log_w, written, a, b = (_by_head(k, heads, size) for _ in range(4))
        kernels.run_rows(
            _program("key_preparation.cu", k, size),
            "prepare_keys_forward",
            (k, w, rate, w0, a0, k_k, k_a),
            (log_w, written, a, b),
        )
        return log_w, written, a, b
    log_w, written, a, b = elementwise.prepare_keys(
        k, w, rate, w0=w0, a0=a0, k_k=k_k, k_a=k_a, heads=(heads, size)
    )
    return log_w.to(k.dtype), written, a.to(k.dtype), b.to(k.dtype)


@prepare_keys.register_fake
def _(k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = (k, *others[-2:])
    return _by_head(*like), _by_head(*like), _by_head(*like), _by_head(*like)


def _by_head(x: Tensor, heads: int, size: int) -> Tensor:
    return x.new_empty(*x.shape[:2], heads, size)


@torch.library.custom_op("rwkvkit::prepare_keys_backward", mutates_args=())
def prepare_keys_backward(
    k: Tensor,
    w: Tensor,
    rate: Tensor,
    w0: Tensor,
    a0: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    dlog_w: Tensor,
    dwritten: Tensor,
    da: Tensor,
    db: Tensor,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of k, w, rate and, if wanted, of the weights as one [4, C]."""
    heads = dlog_w.shape[2:]
    if kernels.takes(k):
        dk, dw, drate = (torch.empty_like(k) for _ in range(3))
        sums = kernels.run_rows(
            _program("key_preparation.cu", k, heads[1]),
            "prepare_keys_backward",
            (k, w, rate, w0, a0, k_k, k_a, dlog_w, dwritten, da, db),
            (dk, dw, drate),
            4 if want_weights else 0,
            backward=True,
        )
        return dk, dw, drate, _sums(sums, k)
    decay, rho = torch.sigmoid(w0 + w), torch.sigmoid(a0 + rate)
    scaled = (k * k_k).unflatten(-1, heads)
    norm = scaled.norm(dim=-1, keepdim=True)
    kk = F.normalize(scaled, dim=-1)
    e = db * rho.unflatten(-1, heads) - da
    along = (kk * e).sum(-1, keepdim=True) * (norm > _EPS)
    f = ((e - kk * along) / norm.clamp_min(_EPS)).flatten(-2)
    through = dwritten.flatten(-2)
    dk = through * (1 + (rho - 1) * k_a) + f * k_k
    dw = elementwise.LOG_W_SCALE * dlog_w.flatten(-2) * decay * (1 - decay)
    drate = ((db * kk).flatten(-2) + through * k * k_a) * rho * (1 - rho)
    if not want_weights:
        return dk, dw, drate, k.new_empty(0)
    weights = (dw, drate, f * k, through * k * (rho - 1))
    return dk, dw, drate, torch.stack([x.sum((0, 1)) for x in weights])


@prepare_keys_backward.register_fake
def _(k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want_weights = others[-1]
    sums = k.new_empty((4, k.shape[-1]) if want_weights else (0,))
    return torch.empty_like(k), torch.empty_like(k), torch.empty_like(k), sums


def _save_keys(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7])


def _keys_gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    want = any(ctx.needs_input_grad[3:7])
    each = (grad.contiguous() for grad in grads)
    *vectors, sums = prepare_keys_backward(*ctx.saved_tensors, *each, want)
    return *vectors, *(sums.unbind(0) if want else [None] * 4), None, None


prepare_keys.register_autograd(_keys_gradients, setup_context=_save_keys)


@torch.library.custom_op("rwkvkit::norm_gate", mutates_args=())
def norm_gate(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    r_k: Tensor,
    eps: float,
) -> Tensor:
    """See ``rwkvkit.ops.elementwise.norm_gate``; weights are [C]."""
    if kernels.takes(y):
        out = torch.empty_like(g)
        kernels.run_rows(
            _program("norm_gate.cu", y, y.shape[3]),
            "norm_gate_forward",
            (eps, y, r, k, v, g, weight, bias, r_k),
            (out,),
        )
        return out
    r_k = r_k.unflatten(-1, y.shape[2:])
    return elementwise.norm_gate(y, r, k, v, g, weight=weight, bias=bias, r_k=r_k, eps=eps)


@norm_gate.register_fake
def _(y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(g)


@torch.library.custom_op("rwkvkit::norm_gate_backward", mutates_args=())
def norm_gate_backward(
    grad: Tensor,
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    r_k: Tensor,
    eps: float,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of y, r, k, v, g and, if wanted, of the weights as one [3, C]."""
    heads = y.shape[2:]
    if kernels.takes(y):
        dy, dr, dk, dv = (torch.empty_like(y) for _ in range(4))
        dg = torch.empty_like(g)
        sums = kernels.run_rows(
            _program("norm_gate.cu", y, heads[1]),
            "norm_gate_backward",
            (eps, grad, y, r, k, v, g, weight, bias, r_k),
            (dy, dr, dk, dv, dg),
            3 if want_weights else 0,
            backward=True,
        )
        return dy, dr, dk, dv, dg, _sums(sums, g)
    weight, bias, r_k = (x.unflatten(-1, heads) for x in (weight, bias, r_k))
    centred = y - y.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    n = centred * scale
    s = (r * k * r_k).sum(-1, keepdim=True)
    d = grad.unflatten(-1, heads)
    dz = d * g.unflatten(-1, heads)
    ds = (dz * v).sum(-1, keepdim=True)
    dn = dz * weight
    dy = (dn - dn.mean(-1, keepdim=True) - n * (dn * n).mean(-1, keepdim=True)) * scale
    dg = (d * (n * weight + bias + s * v)).flatten(-2)
    gradients = (dy, ds * k * r_k, ds * r * r_k, s * dz, dg)
    if not want_weights:
        return *gradients, g.new_empty(0)
    weights = (dz * n, dz, ds * r * k)
    return *gradients, torch.stack([x.flatten(-2).sum((0, 1)) for x in weights])


@norm_gate_backward.register_fake
def _(
    grad: Tensor, y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    want_weights = others[-1]
    sums = g.new_empty((3, g.shape[-1]) if want_weights else (0,))
    like = torch.empty_like
    return like(y), like(r), like(k), like(v), like(g), sums


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _norm_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    want = any(ctx.needs_input_grad[5:8])
    *vectors, sums = norm_gate_backward(grad.contiguous(), *ctx.saved_tensors, ctx.eps, want)
    return *vectors, *(sums.unbind(0) if want else [None] * 3), None


norm_gate.register_autograd(_norm_gradients, setup_context=_save_norm)
