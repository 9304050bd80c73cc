"""RWKV-7's elementwise work as hand-written kernels; on a CPU, the plain form through them.

The functions are those of ``rwkvkit.ops.elementwise``, as operators that pass through
``torch.compile``, fake tensors and activation checkpointing. None has run on a GPU yet.

B batch, T tokens, C n_embd, H heads, N head size.
"""

from collections.abc import Sequence

from torch import Tensor

from rwkvkit.ops.cuda import head_work, token_mixing


def shift_mix(
    x: Tensor, last: Tensor | None, resets: Tensor | None, mixes: Sequence[Tensor]
) -> list[Tensor]:
    """See :func:`rwkvkit.ops.elementwise.shift_mix`."""
    before = None if last is None else _like(last, x)
    starts = None if resets is None else resets.contiguous()
    each = [_like(mix, x).flatten() for mix in mixes]
    return token_mixing.shift_mix(x.contiguous(), before, starts, each)


def relu_squared(x: Tensor) -> Tensor:
    """See :func:`rwkvkit.ops.elementwise.relu_squared`."""
    return token_mixing.relu_squared(x.contiguous())


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
    """See :func:`rwkvkit.ops.elementwise.prepare_keys`; all results are in k's type."""
    vectors = (_like(x, k) for x in (k, w, rate))
    weights = (_like(x, k).flatten() for x in (w0, a0, k_k, k_a))
    return head_work.prepare_keys(*vectors, *weights, *heads)


def residual_value(v: Tensor, v_first: Tensor, gate: Tensor, v0: Tensor) -> Tensor:
    """See :func:`rwkvkit.ops.elementwise.residual_value`."""
    vectors = (_like(x, v) for x in (v, v_first, gate))
    return token_mixing.residual_value(*vectors, _like(v0, v).flatten())


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
    """See :func:`rwkvkit.ops.elementwise.norm_gate`."""
    vectors = (_like(x, g) for x in (y, r, k, v, g))
    weights = (_like(x, g).flatten() for x in (weight, bias, r_k))
    return head_work.norm_gate(*vectors, *weights, eps)


def _like(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype).contiguous()
