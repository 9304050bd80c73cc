"""What the operators share before any arithmetic: precision, shapes, the state at the start.

B batch, T tokens, H heads, N head size.
"""

from typing import Literal

import torch
from torch import Tensor

from rwkvkit.errors import UsageError

Impl = Literal["naive", "chunked", "auto"]


def choose(impl: str, tokens: int) -> str:
    """Resolve ``auto``: the loop for a single token, the chunked form otherwise."""
    if impl not in ("naive", "chunked", "auto"):
        raise UsageError(
            f"impl {impl!r} does not exist", where="wkv", hint="use 'auto', 'naive' or 'chunked'"
        )
    if impl == "auto":
        return "naive" if tokens == 1 else "chunked"
    return impl


def check(inputs: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Compare shapes with those expected, by name.

    Raises:
        UsageError: a shape differs, or there is no token.
    """
    for name, shape in expected.items():
        if name in inputs and tuple(inputs[name].shape) != shape:
            raise UsageError(
                f"{name} has shape {tuple(inputs[name].shape)}, expected {shape}",
                where="wkv",
                hint="r, k, v are [B, T, H, N], a state is [B, H, N, N], resets are [B, T]",
            )
        if 0 in shape:
            raise UsageError(f"{name} is empty, shape {shape}", where="wkv")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The precision of the recurrence: float32, or float64 where an input is."""
    doubles = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if doubles else torch.float32


def first_state(
    state: Tensor | None, origin: Tensor | None, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """The state [B, H, N, N] before the first token: ``state``, else the origin, else zero.

    Args:
        state: [B, H, N, N] or None.
        origin: [H, N, N] or None.
        like: [B, T, H, N], for the sizes and the device.
        dtype: of the result.
    """
    batch, _, heads, size = like.shape
    if state is not None:
        return state.to(dtype)
    if origin is not None:
        return origin.to(dtype).expand(batch, heads, size, size)
    return torch.zeros(batch, heads, size, size, dtype=dtype, device=like.device)
