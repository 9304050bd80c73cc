"""Section of ``gpu_check.py``: x070's elementwise kernels, compared and timed.

B batch, T tokens, H heads, N head size.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from gpu_operators import error_of
from gpu_timing import Row, timed
from torch import Tensor

from rwkvkit.ops import elementwise, fused

Shape = tuple[int, int, int, int]
Call = Callable[[ModuleType, dict[str, Tensor], tuple[int, int]], Sequence[Tensor]]

_LIMITS = {torch.bfloat16: 4e-3, torch.float16: 8e-4, torch.float32: 1e-4}
_SHAPE, _TINY_SHAPE = (8, 4096, 32, 64), (1, 40, 2, 64)


def _mix(ops: ModuleType, given: dict[str, Tensor], _: tuple[int, int]) -> Sequence[Tensor]:
    mixes = [x for name, x in given.items() if name.startswith("mix")]
    out: Sequence[Tensor] = ops.shift_mix(given["x"], None, given["starts"], mixes)
    return out


def _norm(ops: ModuleType, given: dict[str, Tensor], heads: tuple[int, int]) -> Sequence[Tensor]:
    by_head = {name: given[name].unflatten(-1, heads) for name in ("y", "r", "k", "v")}
    weights = {"weight": given["weight"], "bias": given["bias"]}
    r_k = given["r_k"].unflatten(-1, heads)
    return [ops.norm_gate(**by_head, g=given["g"], **weights, r_k=r_k, eps=64e-5)]


# Of each: tensors [B, T, C] (starts: [B, T]) and weights [C]; the call; passes of B T C elements,
# there and back.
_OPS: dict[str, tuple[Sequence[str], Sequence[str], Call, int]] = {
    "six mixes": (("x", "starts"), [f"mix{m}" for m in range(6)], _mix, 15),
    "one mix": (("x", "starts"), ("mix0",), _mix, 5),
    "keys": (
        ("k", "w", "rate"),
        ("w0", "a0", "k_k", "k_a"),
        lambda ops, given, heads: ops.prepare_keys(**given, heads=heads),
        17,
    ),
    "values": (
        ("v", "v_first", "gate"),
        ("v0",),
        lambda ops, given, _: [ops.residual_value(**given)],
        11,
    ),
    "norm and gate": (("y", "r", "k", "v", "g"), ("weight", "bias", "r_k"), _norm, 17),
    "squared relu": (("x",), (), lambda ops, given, _: [ops.relu_squared(given["x"])], 5),
}


def elementwise_cases(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare each operator with its plain form in float64, and two runs with each other."""
    on_gpu = settings.device == "cuda"
    torch.use_deterministic_algorithms(True, warn_only=True)  # unwritten memory is NaN
    for name, (*_, call, _) in _OPS.items():
        for dtype in (torch.bfloat16, torch.float16) if on_gpu else (torch.float32,):
            worst, at, same = 0.0, "", True
            for shape in ((2, 1, 3, 64), (2, 17, 3, 64), (1, 300, 2, 64), (2, 50, 1, 128)):
                inputs, grads = _draw(name, shape, dtype, settings)
                wide = {
                    key: x.detach().double().requires_grad_() if x.requires_grad else x
                    for key, x in inputs.items()
                }
                first = _run(call, fused, inputs, grads, shape)
                if settings.launch_only:
                    continue
                second = _run(call, fused, inputs, grads, shape)
                want = _run(call, elementwise, wide, [x.double() for x in grads], shape)
                same &= all(map(torch.equal, first, second))
                error = max(map(error_of, first, want))
                if not error <= worst:
                    worst, at = error, str(shape)
            kind = str(dtype).removeprefix("torch.")
            ok = worst < _LIMITS[dtype] and same
            yield {
                "what": f"{name} {kind}",
                "error": worst,
                "worst_at": at,
                "repeatable": same,
                "ok": ok,
            }


def _draw(
    name: str, shape: Shape, dtype: torch.dtype, settings: argparse.Namespace
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Inputs by name, and gradients of the outputs."""
    batch, tokens, heads, size = shape
    vectors, weights, call, _ = _OPS[name]
    generator = torch.Generator(settings.device).manual_seed(tokens)
    at = {"device": settings.device, "generator": generator}
    wanted = dict.fromkeys(vectors, (batch, tokens, heads * size))
    wanted |= dict.fromkeys(weights, (heads * size,))
    inputs = {key: torch.randn(of, **at).to(dtype).requires_grad_() for key, of in wanted.items()}
    if "starts" in inputs:
        inputs["starts"] = torch.rand(batch, tokens, **at) < 0.01
    with torch.no_grad():
        outputs = call(elementwise, inputs, (heads, size))
    return inputs, [torch.randn(y.shape, **at).to(dtype) for y in outputs]


def _run(
    call: Call, ops: ModuleType, inputs: dict[str, Tensor], grads: list[Tensor], shape: Shape
) -> list[Tensor]:
    outputs = call(ops, inputs, shape[2:])
    grads = [grad.to(y.dtype) for grad, y in zip(grads, outputs, strict=True)]
    leaves = [x for x in inputs.values() if x.requires_grad]
    found = torch.autograd.grad(outputs, leaves, grads)
    return [*(y.detach() for y in outputs), *found]


def elementwise_section(settings: argparse.Namespace) -> Iterator[Row]:
    """Time forward and backward: by hand, plain, and compiled."""
    shape = _TINY_SHAPE if settings.tiny else _SHAPE
    on_gpu = settings.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    batch, tokens, heads, size = shape
    elements = batch * tokens * heads * size
    ways: dict[str, ModuleType] = {"by hand": fused, "plain": elementwise}
    for way in (*ways, *(["compiled"] if on_gpu else [])):
        for name, (*_, call, passes) in _OPS.items():
            inputs, grads = _draw(name, shape, dtype, settings)
            ops = ways.get(way, elementwise)
            forward: Call = torch.compile(call, dynamic=False) if way == "compiled" else call
            row = {"what": f"{name} {way}"}
            row |= timed(lambda: _run(forward, ops, inputs, grads, shape), settings)  # noqa: B023
            if way == "by hand" and row["ok"]:
                row["gb_per_s"] = passes * elements * dtype.itemsize / row["ms"] / 1e6
            yield row
