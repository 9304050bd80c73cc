"""Sections of ``gpu_check.py``: the WKV kernels compiled, compared and timed.

B batch, T tokens, H heads, N head size.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from multiprocessing import get_context

import torch
from gpu_timing import Row, timed
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.ops import wkv5, wkv6, wkv7
from rwkvkit.ops.cuda.compile import Program, Resources, compile_program

Operator = Callable[..., tuple[Tensor, Tensor]]
OPS: dict[str, Operator] = {"wkv7": wkv7, "wkv6": wkv6, "wkv5": wkv5}
Kind = tuple[str, torch.dtype]
KINDS: tuple[Kind, ...] = (
    ("cuda", torch.bfloat16),
    ("cuda", torch.float16),
    ("precise", torch.float32),
)
_GIVEN = ((), ("state",), ("state", "resets"), ("resets", "origin"))
_LIMITS = {"cuda": 1e-2, "precise": 1e-4, "chunked": 1e-4}  # relative, in the root mean square
_SHAPE, _TINY_SHAPE = (8, 4096, 64, 64), (1, 40, 2, 16)
_TARGETS_MS = {"wkv7": 4.0, "wkv6": 5.0}  # forward and backward on an H200


def compile_kernels(settings: argparse.Namespace) -> Iterator[Row]:
    """Compile every program for this GPU, on all cores; without one, some for an sm_90a."""
    from rwkvkit.ops.cuda import elementwise_kernels, wkv6_kernels, wkv7_kernels
    from rwkvkit.ops.cuda.launch import architecture
    from rwkvkit.ops.cuda.programs import programs

    arch = architecture(0) if settings.device == "cuda" else "sm_90a"
    shown = programs(arch)
    others: list[Program] = []
    if not settings.tiny and arch != "sm_75":  # kept, so that no later section waits for them
        for module in (wkv7_kernels, wkv6_kernels, elementwise_kernels):
            others += [each for each in module.programs().values() if each not in shown]
    spilled: list[str] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        results = pool.map(_compile, [*shown, *others], repeat(arch))
        for program, (resources, seconds) in zip([*shown, *others], results, strict=True):
            for kernel, used in resources.items():
                if program in shown:
                    yield {
                        "what": f"{kernel} {arch}",
                        "registers": used.registers,
                        "spill_bytes": used.spill_bytes,
                        "seconds_of_its_file": seconds,
                        "ok": used.spill_bytes == 0,
                    }
                elif used.spill_bytes:
                    spilled.append(f"{kernel} {program.defines}")
    yield {"what": f"{len(others)} other programs", "spilled": spilled, "ok": not spilled}


def _compile(program: Program, arch: str) -> tuple[dict[str, Resources], float]:
    """What a program takes, and seconds; what was compiled before is quick."""
    start = time.perf_counter()
    return compile_program(program, arch).resources, time.perf_counter() - start


def correct_wkv7(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare the operator with the loop in float64, on the device: the emulator's cases."""
    return _correct(settings, ("wkv7",))


def correct_wkv6(settings: argparse.Namespace) -> Iterator[Row]:
    """The same for WKV6 and WKV5."""
    return _correct(settings, ("wkv6", "wkv5"))


def _correct(settings: argparse.Namespace, names: tuple[str, ...]) -> Iterator[Row]:
    lengths = (1, 17) if settings.tiny else (1, 15, 16, 17, 64, 250, 1024)
    sizes = (16,) if settings.tiny else (64, 128)
    return compare_all(settings, names, lengths, sizes, _kinds(settings))


def wkv_cases(settings: argparse.Namespace) -> Iterator[Row]:
    """A few of these cases."""
    return compare_all(settings, tuple(OPS), (17, 50), (64,), _kinds(settings))


def _kinds(settings: argparse.Namespace) -> tuple[Kind, ...]:
    return KINDS if settings.device == "cuda" else (("chunked", torch.float32),)


def compare_all(
    settings: argparse.Namespace,
    names: tuple[str, ...],
    lengths: tuple[int, ...],
    sizes: tuple[int, ...],
    kinds: tuple[Kind, ...],
) -> Iterator[Row]:
    """Compare operators by name with the loop in float64, for each kind, N and T."""
    # Memory that nobody has written is NaN, so a result left out cannot pass.
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name in names:
        for impl, dtype in kinds:
            for size in sizes:
                what = f"{name} {impl} {str(dtype).removeprefix('torch.')} N{size}"
                worst, at, same = 0.0, "", True
                for tokens in lengths:
                    for given in _GIVEN:
                        if tokens > 250 and "resets" not in given:
                            continue  # the loop in float64 takes its time
                        here = f"T {tokens} {' '.join(given)}"
                        print(what, here, flush=True)  # what a fault came from
                        case = _draw(name, (2, tokens, 3, size), dtype, given, settings.device)
                        first = _results(name, impl, case)
                        if settings.launch_only:
                            continue
                        second = _results(name, impl, case)
                        want = _results(name, "naive", case.double())
                        same &= all(map(torch.equal, first, second))
                        error = max(map(error_of, first, want))
                        if not error <= worst:
                            worst, at = error, here
                yield {
                    "what": what,
                    "error": worst,
                    "worst_at": at,
                    "repeatable": same,
                    "ok": worst <= _LIMITS[impl] and same,
                }


@dataclass(frozen=True)
class _Case:
    """What an operator gets: inputs in its order, others by name; gradients of its results."""

    inputs: list[Tensor]
    others: dict[str, Tensor]
    dy: Tensor
    dfinal: Tensor | None = None

    def double(self) -> "_Case":
        """The same in float64."""

        def wide(x: Tensor) -> Tensor:
            return x.detach().double().requires_grad_() if x.is_floating_point() else x

        return _Case(
            [wide(x) for x in self.inputs],
            {name: wide(x) for name, x in self.others.items()},
            self.dy,
            self.dfinal,
        )


def _draw(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    given: tuple[str, ...],
    device: str,
) -> _Case:
    batch, tokens, heads, size = shape
    generator = torch.Generator().manual_seed(tokens + size)

    def randn(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator).to(device)

    vectors = (x.to(device) for x in inputs_of(name, shape, generator))
    inputs = [(x.to(dtype) if x.dim() == 4 else x).requires_grad_() for x in vectors]
    starts = torch.rand(batch, tokens, generator=generator) < 0.06
    others = {
        "state": randn(batch, heads, size, size).requires_grad_(),
        "resets": starts.to(device),
        "origin": randn(heads, size, size).requires_grad_(),
    }
    return _Case(
        inputs,
        {key: others[key] for key in given},
        randn(*shape).to(dtype),
        randn(batch, heads, size, size),
    )


def inputs_of(
    name: str, shape: tuple[int, int, int, int], generator: torch.Generator
) -> list[Tensor]:
    """Inputs as a model makes them, in float32 on the generator's device."""

    def randn(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator, device=generator.device)

    r, k, v, w_raw = (randn(*shape) for _ in range(4))
    if name == "wkv7":
        kk = F.normalize(randn(*shape), dim=-1)
        log_w = -math.exp(-0.5) * torch.sigmoid(w_raw - 2)
        return [r, log_w, 0.5 * k, v, -kk, kk * torch.sigmoid(randn(*shape))]
    log_w = -(w_raw - 2).exp()
    return [r, k, v, log_w if name == "wkv6" else log_w[0, 0], randn(*shape[2:])]


def _results(name: str, impl: str, case: _Case) -> list[Tensor]:
    """The outputs, and the gradients of every input."""
    y, final = OPS[name](*case.inputs, **case.others, impl=impl)
    leaves = [x for x in (*case.inputs, *case.others.values()) if x.requires_grad]
    outputs, gradients = [y], [case.dy.to(y.dtype)]
    if case.dfinal is not None:
        outputs.append(final)
        gradients.append(case.dfinal.to(final.dtype))
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, leaves, gradients)]


def error_of(got: Tensor, want: Tensor) -> float:
    """Relative error in the root mean square; infinite where a result is NaN."""
    got, want = got.double(), want.double()
    norm = float(want.norm())
    error = float((got - want).norm()) / (norm or 1.0)
    return math.inf if math.isnan(error) else error


def operators(settings: argparse.Namespace) -> Iterator[Row]:
    """Time forward and backward of each operator: kernels, fp32 kernels, portable, fla's.

    The two kinds of kernels are compared with each other as well: many blocks, long sequences.
    """
    shape = _TINY_SHAPE if settings.tiny else _SHAPE
    generator = torch.Generator(settings.device).manual_seed(0)
    on_gpu = settings.device == "cuda"
    impls = ("cuda", "precise", "chunked") if on_gpu else ("chunked",)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    for name in OPS:
        vectors = inputs_of(name, shape, generator)
        inputs = [(x.to(dtype) if x.dim() == 4 else x).requires_grad_() for x in vectors]
        dy = torch.randn(shape, generator=generator, device=settings.device).to(dtype)
        case = _Case(inputs, {}, dy)
        for impl in impls:
            run = partial(_results, name, impl, case)
            row = {"what": f"{name} {impl}", **timed(run, settings)}
            target = _TARGETS_MS.get(name)
            if impl == "cuda" and target and not settings.tiny:
                row["target_ms"] = target
            yield row
        compared = (impls[0], "precise" if on_gpu else "naive")
        error = max(map(error_of, *(_results(name, impl, case) for impl in compared)))
        yield {"what": f"{name} {' against '.join(compared)}", "error": error, "ok": error < 1e-2}
        if run_fla := _fla(name):

            def both(run_fla: Operator = run_fla, case: _Case = case) -> object:
                y, _ = run_fla(*case.inputs)
                return torch.autograd.grad(y, case.inputs, case.dy.to(y.dtype), allow_unused=True)

            # Whether it runs is not our matter.
            yield {"what": f"{name} fla", **timed(both, settings), "ok": True}


def _fla(name: str) -> Operator | None:
    """flash-linear-attention's chunked operator, where that package is."""
    try:
        from fla.ops.rwkv6 import chunk_rwkv6
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        return None
    if name == "wkv7":
        return lambda *x: chunk_rwkv7(*x, scale=1.0)
    return (lambda *x: chunk_rwkv6(*x, scale=1.0)) if name == "wkv6" else None
