"""Inputs for the WKV operators, made as the models make them.

B batch, T tokens, H heads, N head size.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.ops import wkv5, wkv6, wkv7

OPS = {"wkv5": wkv5, "wkv6": wkv6, "wkv7": wkv7}


def inputs(
    op: str,
    shape: tuple[int, int, int, int],
    *,
    seed: int = 0,
    w_raw: tuple[float, float] = (-5.0, 1.0),
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """The positional arguments of an operator, leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        low, high = w_raw
        return torch.rand(*size, generator=generator, dtype=torch.float64) * (high - low) + low

    r, k, v = randn(*shape), randn(*shape), randn(*shape)
    if op == "wkv7":
        kk = F.normalize(randn(*shape), dim=-1)
        rate = torch.sigmoid(randn(*shape))
        log_w = -math.exp(-0.5) * torch.sigmoid(uniform(*shape))
        tensors = [r, log_w, k, v, -kk, kk * rate]
    else:
        log_w = -uniform(*(shape if op == "wkv6" else shape[2:])).exp()
        tensors = [r, k, v, log_w, randn(*shape[2:])]
    return [x.to(dtype).requires_grad_() for x in tensors]


def states(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """A state and an origin."""
    batch, _, heads, size = shape
    generator = torch.Generator().manual_seed(99)
    state = torch.randn(batch, heads, size, size, generator=generator, dtype=torch.float64)
    origin = torch.randn(heads, size, size, generator=generator, dtype=torch.float64)
    return state.to(dtype).requires_grad_(), origin.to(dtype).requires_grad_()


def starts(shape: tuple[int, int, int, int], every: float = 9) -> Tensor:
    """Document starts at random places, and one document of a single token."""
    batch, tokens, _, _ = shape
    generator = torch.Generator().manual_seed(7)
    resets = torch.rand(batch, tokens, generator=generator) < 1 / every
    resets[0, tokens // 2 : tokens // 2 + 2] = True
    return resets


def value_and_grads(outputs: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The outputs, and the gradients of a fixed function of both of them."""
    y, final = outputs
    generator = torch.Generator().manual_seed(5)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum()
        for x in (y, final)
    )
    return [y, final, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def error(got: Tensor, want: Tensor) -> float:
    """Relative error, in the root mean square."""
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))
