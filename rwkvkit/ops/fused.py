"""RWKV-7's elementwise work as hand-written kernels; on a CPU, the plain form through them.

The functions are those of ``rwkvkit.ops.elementwise``, as operators that pass through
``torch.compile``, fake tensors and activation checkpointing. None has run on a GPU yet.

B batch, T tokens, C n_embd, H heads, N head size.
"""

from collections.abc import Sequence

from torch import Tensor

from rwkvkit.ops.cuda import token_mixing


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


def _like(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype).contiguous()
