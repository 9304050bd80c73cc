"""Inputs for the WKV6 and WKV5 kernels, what float64 makes of them, and what the emulator does.

B batch, T tokens, H heads, N head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkvkit.ops import wkv5, wkv6
from rwkvkit.ops.cuda import wkv6_kernels as kernels

NAMES = ("r", "k", "v", "log_w", "u")


@dataclass
class Case:
    """Inputs in the kernels' types, and gradients of both outputs."""

    tensors: tuple[Tensor, ...]  # r, k, v, log_w, u
    dy: Tensor
    state: Tensor | None = None
    resets: Tensor | None = None
    dfinal: Tensor | None = None


def make(
    shape: tuple[int, int, int, int],
    *,
    op: str = "wkv6",
    dtype: torch.dtype = torch.bfloat16,
    w_raw: tuple[float, float] = (-6.0, 1.0),
    state: bool = False,
    dfinal: bool = False,
    starts: list[int] | None = None,
    correlated: bool = False,
    gradient: float = 1.0,
) -> Case:
    """Make inputs: decays e^-e^w_raw, ``correlated``: like keys, ``gradient``: the scale of dy."""
    batch, tokens, heads, size = shape
    generator = torch.Generator().manual_seed(tokens + size)

    def randn(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator, dtype=torch.float64)

    r, k, v, dy = (randn(*shape) for _ in range(4))
    if correlated:
        r, k = 0.3 * r + randn(1, 1, heads, size), 0.3 * k + randn(1, 1, heads, size)
    low, high = w_raw
    uniform = torch.rand(shape if op == "wkv6" else shape[2:], generator=generator).double()
    log_w = -(uniform * (high - low) + low).exp()
    resets = None
    if starts is not None:
        resets = torch.zeros(batch, tokens, dtype=torch.bool)
        resets[0, [t for t in starts if t < tokens]] = True
        resets[1:, :1] = True  # the others begin with one and have no more
    square = (batch, heads, size, size)
    return Case(
        tensors=(
            *(x.to(dtype) for x in (r, k, v)),
            log_w.to(dtype if op == "wkv6" else torch.float32),
            (0.5 * randn(heads, size)).float(),
        ),
        dy=(gradient * dy).to(dtype),
        state=randn(*square).float() if state else None,
        resets=resets,
        dfinal=(gradient * randn(*square)).float() if dfinal else None,
    )


def exact(case: Case) -> dict[str, Tensor]:
    """The results and gradients in float64, by autograd through the loop over tokens."""
    leaves = [x.double().requires_grad_() for x in case.tensors]
    names = [f"d{name}" for name in NAMES]
    state = None
    if case.state is not None:
        state = case.state.double().requires_grad_()
        leaves.append(state)
        names.append("dstate")
    op = wkv6 if case.tensors[3].dim() == 4 else wkv5
    y, final = op(*leaves[:5], state, case.resets, impl="naive")
    loss = (y * case.dy.double()).sum()
    if case.dfinal is not None:
        loss = loss + (final * case.dfinal.double()).sum()
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return {
        "y": y.detach(),
        "final": final.detach(),
        **dict(zip(names, gradients, strict=True)),
    }


def run(case: Case, **shape: int | bool) -> dict[str, Tensor]:
    """The kernels' results and gradients; ``shape``: more of the program's shape."""
    resets = case.resets is not None
    r = case.tensors[0]
    if r.dtype == torch.float32:
        out = kernels.precise_forward(*case.tensors, case.state, case.resets, keep=True)
        y, final, kept = out
        gradients = kernels.precise_backward(
            *(*case.tensors, case.resets, kept, case.dy, case.dfinal),
            want_state=case.state is not None,
        )
    else:
        program = kernels.Shape(r.shape[-1], r.dtype == torch.float16, resets, **shape)
        y, final, kept = kernels.forward(program, *case.tensors, case.state, case.resets, keep=True)
        gradients = kernels.backward(
            program,
            *(*case.tensors, case.resets, kept, case.dy, case.dfinal),
            want_state=case.state is not None,
        )
    names = [*(f"d{name}" for name in NAMES), "dstate"]
    named = dict(zip(names, gradients, strict=True))
    return {"y": y, "final": final, **{n: x for n, x in named.items() if x is not None}}


def error(got: Tensor, want: Tensor) -> float:
    """Relative error, in the root mean square; NaN where a result is NaN."""
    got, want = got.detach().double(), want.detach().double()
    norm = float(want.norm())
    return float((got - want).norm()) / (norm if norm else 1.0)
