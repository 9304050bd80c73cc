"""Tokens per second of the chunked WKV operators against the naive loop, forward and backward.

    python benchmarks/ops.py --out benchmarks/results/ops.json

Both forms run in turn on the same inputs, and the best of the rounds counts: other work on the
machine can only make a round slower.
"""

import argparse
import math
import time
from pathlib import Path

import report
import torch
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.ops import wkv5, wkv6, wkv7

ARCHITECTURES = {"x052": wkv5, "x060": wkv6, "x070": wkv7}


def main() -> None:
    """Measure, print, and write the report."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    shape = (arguments.batch, arguments.tokens, arguments.heads, arguments.head_size)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    results = report.header("torch", hardware=name) | {
        "threads": arguments.threads,
        "shape": dict(zip("BTHN", shape, strict=True)),
        "dtype": "float32",
        "unit": "tokens/s, forward and backward",
        "results": {arch: _compare(arch, shape, device, arguments) for arch in ARCHITECTURES},
    }
    for arch, result in results["results"].items():
        print(
            f"{arch}  naive {result['naive']:>9,.0f} tok/s   "
            f"chunked {result['chunked']:>9,.0f} tok/s   ratio {result['ratio']:.1f}"
        )
    report.save(results, arguments.out)


def _compare(
    arch: str,
    shape: tuple[int, int, int, int],
    device: torch.device,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    inputs = _inputs(arch, shape, device)
    best = {"naive": math.inf, "chunked": math.inf}
    for round_number in range(arguments.rounds + 1):
        for impl in best:
            seconds = _seconds(arch, impl, inputs)
            if round_number > 0:  # the first warms up
                best[impl] = min(best[impl], seconds)
    tokens = shape[0] * shape[1]
    return {
        "naive": round(tokens / best["naive"]),
        "chunked": round(tokens / best["chunked"]),
        "ratio": round(best["naive"] / best["chunked"], 2),
    }


def _seconds(arch: str, impl: str, inputs: list[Tensor]) -> float:
    for tensor in inputs:
        tensor.grad = None
    _synchronize(inputs[0].device)
    start = time.perf_counter()
    y, _ = ARCHITECTURES[arch](*inputs, impl=impl)
    y.square().sum().backward()
    _synchronize(inputs[0].device)
    return time.perf_counter() - start


def _inputs(arch: str, shape: tuple[int, int, int, int], device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    r, k, v, w_raw = (randn(*shape) for _ in range(4))
    if arch == "x070":
        kk = F.normalize(randn(*shape), dim=-1)
        log_w = -math.exp(-0.5) * torch.sigmoid(w_raw - 2)
        tensors = [r, log_w, k, v, -kk, kk * torch.sigmoid(randn(*shape))]
    else:
        log_w = -(w_raw - 2).exp()
        tensors = [r, k, v, log_w if arch == "x060" else log_w[0, 0], randn(*shape[2:])]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
