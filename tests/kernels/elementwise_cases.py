"""Inputs for the elementwise kernels, and what float64 makes of them.

B batch, T tokens, H heads, N head size, C = H N.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from rwkvkit.ops import elementwise

Shape = tuple[int, int, int, int]
Heads = tuple[int, int]
Draw = Callable[..., Tensor]
Call = Callable[[ModuleType, dict[str, Tensor], Tensor, Heads], Sequence[Tensor]]


@dataclass(frozen=True)
class Kind:
    """A function of ``rwkvkit.ops.elementwise``.

    Attributes:
        make: draws its floating inputs, by name.
        call: calls it in a module with these, the document starts, H and N; returns its outputs.
        sums: the inputs whose gradients are sums over all tokens.
    """

    make: Callable[[Draw, Shape], dict[str, Tensor]]
    call: Call
    sums: tuple[str, ...] = ()


@dataclass
class Case:
    """Inputs in the kernels' type, and seeds of the gradients of the outputs."""

    kind: Kind
    inputs: dict[str, Tensor]
    resets: Tensor
    heads: Heads
    dtype: torch.dtype
    grads: list[Tensor] = field(default_factory=list)


def _mix_inputs(count: int, *, last: bool) -> Callable[[Draw, Shape], dict[str, Tensor]]:
    def draw(randn: Draw, shape: Shape) -> dict[str, Tensor]:
        batch, tokens, heads, size = shape
        width = heads * size
        found = {"x": randn(batch, tokens, width)}
        if last:
            found["last"] = randn(batch, width)
        return found | {f"mix{m}": randn(1, 1, width) for m in range(count)}

    return draw


def _mix(resets: bool) -> Call:
    def call(
        ops: ModuleType, given: dict[str, Tensor], starts: Tensor, heads: Heads
    ) -> Sequence[Tensor]:
        mixes = [x for name, x in given.items() if name.startswith("mix")]
        out: Sequence[Tensor] = ops.shift_mix(
            given["x"], given.get("last"), starts if resets else None, mixes
        )
        return out

    return call


def _key_inputs(randn: Draw, shape: Shape) -> dict[str, Tensor]:
    batch, tokens, heads, size = shape
    width = heads * size
    found = {name: randn(batch, tokens, width) for name in ("k", "w", "rate")}
    return found | {name: randn(1, 1, width) for name in _OF_KEYS}


def _keys(
    ops: ModuleType, given: dict[str, Tensor], starts: Tensor, heads: Heads
) -> Sequence[Tensor]:
    found: Sequence[Tensor] = ops.prepare_keys(**given, heads=heads)
    return found


def _norm_inputs(randn: Draw, shape: Shape) -> dict[str, Tensor]:
    batch, tokens, heads, size = shape
    width = heads * size
    found = {name: randn(*shape) for name in ("y", "r", "k", "v")}
    found["y"] += 3  # the mean has to go
    found |= {"g": randn(batch, tokens, width)}
    return found | {"weight": randn(width), "bias": randn(width), "r_k": 0.2 * randn(heads, size)}


def _value_inputs(randn: Draw, shape: Shape) -> dict[str, Tensor]:
    batch, tokens, heads, size = shape
    width = heads * size
    found = {name: randn(batch, tokens, width) for name in ("v", "v_first", "gate")}
    return found | {"v0": randn(1, 1, width)}


_SIX = tuple(f"mix{m}" for m in range(6))
_OF_KEYS = ("w0", "a0", "k_k", "k_a")
CASES = {
    "six mixes": Kind(_mix_inputs(6, last=False), _mix(False), _SIX),
    "six mixes, last": Kind(_mix_inputs(6, last=True), _mix(False), _SIX),
    "six mixes, last, documents": Kind(_mix_inputs(6, last=True), _mix(True), _SIX),
    "one mix, documents": Kind(_mix_inputs(1, last=False), _mix(True), ("mix0",)),
    "relu squared": Kind(
        lambda randn, shape: {"x": randn(*shape)},
        lambda ops, given, *_: [ops.relu_squared(given["x"])],
    ),
    "keys": Kind(_key_inputs, _keys, _OF_KEYS),
    "values": Kind(_value_inputs, lambda ops, given, *_: [ops.residual_value(**given)], ("v0",)),
    "norm and gate": Kind(
        _norm_inputs,
        lambda ops, given, *_: [ops.norm_gate(**given, eps=64e-5)],
        ("weight", "bias", "r_k"),
    ),
}


def make(name: str, shape: Shape, *, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Draw the inputs of a case, and gradients of its outputs."""
    generator = torch.Generator().manual_seed(sum(shape))

    def randn(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator, dtype=torch.float64)

    kind = CASES[name]
    inputs = {key: x.to(dtype) for key, x in kind.make(randn, shape).items()}
    resets = torch.rand(shape[:2], generator=generator) < 0.1
    resets[:, 0] = torch.arange(shape[0]) == 0  # elsewhere what came before counts
    case = Case(kind, inputs, resets, shape[2:], dtype)
    outputs = kind.call(elementwise, inputs, resets, case.heads)
    case.grads = [randn(*y.shape).to(dtype) for y in outputs]
    return case


def run(
    ops: ModuleType, case: Case, *, dtype: torch.dtype | None = None, frozen: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The outputs and the gradients of all inputs that are not frozen."""
    inputs = {
        name: x.to(dtype or x.dtype, copy=True).requires_grad_(name not in frozen)
        for name, x in case.inputs.items()
    }
    outputs = case.kind.call(ops, inputs, case.resets, case.heads)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = [grad.to(y.dtype) for grad, y in zip(case.grads, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    named = {f"out{number}": y.detach() for number, y in enumerate(outputs)}
    return named | {f"d{name}": x for name, x in zip(leaves, found, strict=True)}


def exact(case: Case) -> dict[str, Tensor]:
    """The same by autograd through the plain form in float64."""
    return run(elementwise, case, dtype=torch.float64)


def error(got: Tensor, want: Tensor) -> float:
    """Relative error, in the root mean square; NaN where a result is NaN."""
    got, want = got.double(), want.double()
    norm = float(want.norm())
    return float((got - want).norm()) / (norm if norm else 1.0)
