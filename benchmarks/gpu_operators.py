"""Sections of ``gpu_check.py``: the kernels compiled, compared, watched and timed.

B batch, T tokens, H heads, N head size.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpu_process import run_within
from gpu_timing import Row, timed
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.ops import wkv5, wkv6, wkv7

OPS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"wkv7": wkv7, "wkv6": wkv6, "wkv5": wkv5}
_LIMITS = {"cuda": 1e-2, "precise": 1e-4, "chunked": 1e-4}  # relative, in the root mean square
_SHAPE, _TINY_SHAPE = (8, 4096, 64, 64), (1, 40, 2, 16)
_SANITIZER = "/usr/local/cuda/bin/compute-sanitizer"
_TARGETS_MS = {"wkv7": 4.0, "wkv6": 5.0}  # forward and backward on an H200


def compile_kernels(settings: argparse.Namespace) -> Iterator[Row]:
    """Compile every program for this GPU; without one, for an sm_90a."""
    from rwkvkit.ops.cuda.compile import compile_program
    from rwkvkit.ops.cuda.launch import architecture
    from rwkvkit.ops.cuda.programs import programs

    arch = architecture(0) if settings.device == "cuda" else "sm_90a"
    for program in programs(arch):
        start = time.perf_counter()
        resources = compile_program(program, arch).resources
        seconds = time.perf_counter() - start
        for kernel, used in resources.items():
            yield {
                "what": f"{kernel} {arch}",
                "registers": used.registers,
                "spill_bytes": used.spill_bytes,
                "seconds_of_its_file": seconds,
                "ok": used.spill_bytes == 0,
            }


def correct_wkv7(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare the operator with the loop in float64, on the device: the emulator's cases."""
    return _correct(settings, ("wkv7",))


def correct_wkv6(settings: argparse.Namespace) -> Iterator[Row]:
    """The same for WKV6 and WKV5."""
    return _correct(settings, ("wkv6", "wkv5"))


def _correct(settings: argparse.Namespace, names: tuple[str, ...]) -> Iterator[Row]:
    lengths = (1, 17) if settings.tiny else (1, 15, 16, 17, 64, 250, 1024)
    return _compare_all(settings, names, lengths, (16,) if settings.tiny else (64, 128))


def wkv_cases(settings: argparse.Namespace) -> Iterator[Row]:
    """A few of these cases."""
    return _compare_all(settings, tuple(OPS), (17, 50), (64,))


def _compare_all(
    settings: argparse.Namespace,
    names: tuple[str, ...],
    lengths: tuple[int, ...],
    sizes: tuple[int, ...],
) -> Iterator[Row]:
    # Memory that nobody has written is NaN, so a result left out cannot pass.
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name in names:
        for impl in ("cuda", "precise") if settings.device == "cuda" else ("chunked",):
            for size in sizes:
                worst, at, same = 0.0, "", True
                for tokens in lengths:
                    for state, resets in ((False, False), (True, False), (True, True)):
                        if tokens > 250 and not resets:
                            continue  # the loop in float64 takes its time
                        case = _case(name, impl, (2, tokens, 3, size), state, resets, settings)
                        first = _results(name, impl, case)
                        if settings.launch_only:
                            continue
                        second = _results(name, impl, case)
                        want = _results(name, "naive", [_double(x) for x in case])
                        same &= all(map(torch.equal, first, second))
                        error = max(map(error_of, first, want))
                        if not error <= worst:
                            worst, at = error, f"T {tokens} state {state} resets {resets}"
                yield {
                    "what": f"{name} {impl} N{size}",
                    "error": worst,
                    "worst_at": at,
                    "repeatable": same,
                    "ok": worst <= _LIMITS[impl] and same,
                }


def _case(
    name: str,
    impl: str,
    shape: tuple[int, int, int, int],
    state: bool,
    resets: bool,
    settings: argparse.Namespace,
) -> list[Tensor | None]:
    """Inputs, state and resets in the operator's order, then gradients of y and the last state."""
    batch, tokens, heads, size = shape
    dtype = torch.bfloat16 if impl == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(tokens + size)

    def randn(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator)

    tensors: list[Tensor | None] = [
        x.to(dtype) if x.dim() == 4 else x for x in inputs_of(name, shape, generator)
    ]
    square = (batch, heads, size, size)
    tensors.append(randn(*square) if state else None)
    starts = torch.rand(batch, tokens, generator=generator) < 0.06
    tensors.append(starts if resets else None)
    tensors += [randn(*shape).to(dtype), randn(*square)]
    return [
        None if x is None else x.to(settings.device).requires_grad_(x.is_floating_point())
        for x in tensors
    ]


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


def _results(name: str, impl: str, case: list[Tensor | None]) -> list[Tensor]:
    """The outputs, and the gradients of every input."""
    *inputs, dy, dfinal = case
    y, final = OPS[name](*inputs, impl=impl)
    leaves = [x for x in inputs if x is not None and x.requires_grad]
    gradients = torch.autograd.grad((y, final), leaves, (dy, dfinal.to(final.dtype)))
    return [y.detach(), final.detach(), *gradients]


def _double(x: Tensor | None) -> Tensor | None:
    if x is None or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_()


def error_of(got: Tensor, want: Tensor) -> float:
    """Relative error in the root mean square; infinite where a result is NaN."""
    got, want = got.double(), want.double()
    norm = float(want.norm())
    error = float((got - want).norm()) / (norm or 1.0)
    return math.inf if math.isnan(error) else error


def sanitizer(settings: argparse.Namespace) -> Iterator[Row]:
    """Run the small cases under compute-sanitizer."""
    script = Path(__file__).with_name("gpu_check.py")
    program = shutil.which("compute-sanitizer") or shutil.which(_SANITIZER)
    if program is None:
        text = "not on PATH: CUDA toolkit has it"
        yield {"what": "compute-sanitizer", "ok": False, "output": text}
        return
    small = [sys.executable, str(script), "--section", "small cases", "--launch-only"]
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", *small]
        start = time.perf_counter()
        # Within a segment of torch's allocator no access would be out of bounds.
        done = run_within(settings.limit, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        row = {"what": tool, "seconds": time.perf_counter() - start, "ok": done.ok}
        yield row if done.ok else row | {"output": done.said()}


def operators(settings: argparse.Namespace) -> Iterator[Row]:
    """Time forward and backward of each operator: kernels, fp32 kernels, portable, fla's."""
    shape = _TINY_SHAPE if settings.tiny else _SHAPE
    generator = torch.Generator(settings.device).manual_seed(0)
    impls = ("cuda", "precise", "chunked") if settings.device == "cuda" else ("chunked",)
    for name in OPS:
        dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
        inputs = [
            (x.to(dtype) if x.dim() == 4 else x).requires_grad_()
            for x in inputs_of(name, shape, generator)
        ]
        gradient = torch.randn(shape, generator=generator, device=settings.device).to(dtype)
        for impl in impls:
            run = _pass(lambda *x, name=name, impl=impl: OPS[name](*x, impl=impl), inputs, gradient)
            row = {"what": f"{name} {impl}", **timed(run, settings)}
            target = _TARGETS_MS.get(name)
            if impl == "cuda" and target and not settings.tiny:
                row["target_ms"] = target
            yield row
        if run_fla := _fla(name):
            found = timed(_pass(run_fla, inputs, gradient), settings)
            yield {"what": f"{name} fla", **found, "ok": True}  # whether it runs is not our matter


def _pass(
    operator: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], gradient: Tensor
) -> Callable[[], object]:
    def run() -> object:
        y, _ = operator(*inputs)
        return torch.autograd.grad(y, inputs, gradient.to(y.dtype), allow_unused=True)

    return run


def _fla(name: str) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """flash-linear-attention's chunked operator, where that package is."""
    try:
        from fla.ops.rwkv6 import chunk_rwkv6
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        return None
    if name == "wkv7":
        return lambda *x: chunk_rwkv7(*x, scale=1.0)
    return (lambda *x: chunk_rwkv6(*x, scale=1.0)) if name == "wkv6" else None
