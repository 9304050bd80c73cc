"""Tokens per second of whole training steps on the CPU, for the three architectures.

    python benchmarks/model.py --out benchmarks/results/model.json

A step is forward, loss, backward, clipping and AdamW, as the trainer does it. The operators take
turns within a round, and the best round counts.
"""

import argparse
import math
import time
from pathlib import Path

import report
import torch

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ARCHS, ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine

SETTINGS = TrainConfig(micro_bsz=4, lr_init=1e-4, lr_final=1e-5, device="cpu", precision="fp32")


def main() -> None:
    """Measure, print, and write the results."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results = report.header("torch", "numpy") | {
        "unit": "tokens/s of whole optimizer steps, fp32",
        "threads": arguments.threads,
        "shape": {
            "n_layer": arguments.n_layer,
            "n_embd": arguments.n_embd,
            "vocab_size": arguments.vocab_size,
            "ctx_len": arguments.ctx_len,
            "micro_bsz": SETTINGS.micro_bsz,
        },
        "results": {},
    }
    for arch in ARCHS:
        config = ModelConfig(
            arch=arch,
            n_layer=arguments.n_layer,
            n_embd=arguments.n_embd,
            vocab_size=arguments.vocab_size,
        )
        found = _compare(config, arguments.ctx_len, arguments.rounds)
        results["results"][arch] = found
        print(
            f"{arch}  naive {found['naive']:>7,.0f} tok/s  chunked {found['chunked']:>7,.0f} tok/s"
            f"  ratio {found['ratio']:.2f}"
        )
    report.save(results, arguments.out)


def _compare(config: ModelConfig, ctx_len: int, rounds: int) -> dict[str, float]:
    weights = init_weights(config, seed=0)
    engines = {
        impl: TorchEngine(build_model(config, weights, impl=impl), SETTINGS)
        for impl in ("naive", "chunked")
    }
    generator = torch.Generator().manual_seed(0)
    shape = (SETTINGS.micro_bsz, ctx_len)
    batch = Batch(*(torch.randint(config.vocab_size, shape, generator=generator) for _ in range(2)))
    best = dict.fromkeys(engines, math.inf)
    for round_number in range(rounds + 1):
        for impl, engine in engines.items():
            start = time.perf_counter()
            engine.step(batch, lr=1e-4, weight_decay=0.0)
            if round_number:  # the first warms up
                best[impl] = min(best[impl], time.perf_counter() - start)
    tokens = batch.x.numel()
    return {
        "naive": round(tokens / best["naive"]),
        "chunked": round(tokens / best["chunked"]),
        "ratio": round(best["naive"] / best["chunked"], 2),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=65536)
    parser.add_argument("--ctx-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
