"""Inputs for the WKV7 kernels, and what float64 makes of them.

B batch, T tokens, H heads, N head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.ops import wkv7
from rwkvkit.ops.cuda import wkv7_kernels

NAMES = ("r", "log_w", "k", "v", "a", "b")


@dataclass
class Case:
    """Inputs in the kernels' types, and gradients of both outputs."""

    vectors: tuple[Tensor, ...]
    dy: Tensor
    state: Tensor | None = None
    origin: Tensor | None = None
    resets: Tensor | None = None
    dfinal: Tensor | None = None


def make(
    shape: tuple[int, int, int, int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    state: bool = False,
    dfinal: bool = False,
    origin: bool = False,
    starts: list[int] | None = None,
    correlated: bool = False,
) -> Case:
    """Make inputs as the model makes them; ``correlated``: like keys, decay near 1."""
    batch, tokens, heads, size = shape
    generator = torch.Generator().manual_seed(tokens + size)

    def randn(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator, dtype=torch.float64)

    r, v, dy, w_raw, k = (randn(*shape) for _ in range(5))
    rate = torch.sigmoid(randn(*shape))
    if correlated:
        common = F.normalize(randn(batch, 1, heads, size), dim=-1)
        kk = F.normalize(0.9 * common + 0.436 * F.normalize(randn(*shape), dim=-1), dim=-1)
        k, w_raw = 4 * kk, 0.5 * w_raw - 5
    else:
        kk = F.normalize(randn(*shape), dim=-1)
        k, w_raw = 0.5 * k, 2 * w_raw
    log_w = -math.exp(-0.5) * torch.sigmoid(w_raw)
    resets = None
    if starts is not None:
        resets = torch.zeros(batch, tokens, dtype=torch.bool)
        resets[0, [t for t in starts if t < tokens]] = True  # the other sequences have none

    def matrix(wanted: bool, *of: int) -> Tensor | None:
        return (0.3 * randn(*of, size, size)).float() if wanted else None

    return Case(
        vectors=tuple(x.to(dtype) for x in (r, log_w, k, v, -kk, kk * rate)),
        dy=dy.to(dtype),
        state=matrix(state, batch, heads),
        origin=matrix(origin, heads),
        resets=resets,
        dfinal=matrix(dfinal, batch, heads),
    )


def exact(case: Case) -> dict[str, Tensor]:
    """The results and gradients in float64, by autograd through the loop over tokens."""
    vectors = [x.double().requires_grad_() for x in case.vectors]
    leaves = dict(zip(NAMES, vectors, strict=True))
    extra = {"state": case.state, "origin": case.origin}
    given = {n: x.double().requires_grad_() for n, x in extra.items() if x is not None}
    y, final = wkv7(
        *vectors,
        given.get("state"),
        case.resets,
        origin=given.get("origin") if case.resets is not None else None,
        impl="naive",
    )
    loss = (y * case.dy.double()).sum()
    if case.dfinal is not None:
        loss = loss + (final * case.dfinal.double()).sum()
    leaves |= given
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    named = {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {"y": y.detach(), "final": final.detach(), **named}


def run(case: Case, **shape: int) -> dict[str, Tensor]:
    """Results and gradients by the chunked kernels; ``shape``: more of the program's shape."""
    first = case.vectors[0]
    program = wkv7_kernels.Shape(
        first.shape[-1],
        fp16=first.dtype == torch.float16,
        resets=case.resets is not None,
        **shape,
    )
    forward, backward = wkv7_kernels.forward, wkv7_kernels.backward
    return _results(case, partial(forward, program), partial(backward, program))


def run_precise(case: Case) -> dict[str, Tensor]:
    """The same by the fp32 kernels."""
    vectors = tuple(x.float() for x in case.vectors)
    case = replace(case, vectors=vectors, dy=case.dy.float())
    return _results(case, wkv7_kernels.precise_forward, wkv7_kernels.precise_backward)


def _results(
    case: Case, forward: Callable[..., Any], backward: Callable[..., Any]
) -> dict[str, Tensor]:
    given = (case.origin, case.resets)
    y, final, checkpoints = forward(case.vectors, case.state, *given, keep=True)
    gradients, dstate, dorigin = backward(
        case.vectors,
        case.dy,
        *given,
        checkpoints,
        case.dfinal,
        want_state=case.state is not None,
        want_origin=case.origin is not None,
    )
    found = {"y": y, "final": final}
    found |= {f"d{name}": x for name, x in zip(NAMES, gradients, strict=True)}
    found |= {"dstate": dstate, "dorigin": dorigin}
    return {name: x for name, x in found.items() if x is not None}


def error(got: Tensor, want: Tensor) -> float:
    """Relative error, in the root mean square; NaN where a result is NaN."""
    got, want = got.detach().double(), want.detach().double()
    norm = float(want.norm())
    return float((got - want).norm()) / (norm if norm else 1.0)
