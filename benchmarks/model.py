"""Tokens per second of whole training steps on the CPU, for the three architectures.

    python benchmarks/model.py --out benchmarks/results/model.json

A step is forward, loss, backward, clipping and AdamW, as the trainer does it. The operators take
turns within a round, and the best round counts. ``overhead`` compares the training loop on real
files with the bare steps inside it.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import report
import torch

from rwkvkit import BinidxWriter, magic_prime, open_binidx
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ARCHS, ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.loop import RunFiles, train
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.plan import plan_training
from rwkvkit.train.sampler import SampleReader

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
    results["overhead"] = _overhead(arguments.ctx_len)
    print(f"training loop over its bare steps: {results['overhead']['percent']:.1f} % more time")
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


def _overhead(ctx_len: int, steps: int = 60) -> dict[str, float]:
    """Time the loop without saving, against the sum of the engine's own steps."""
    config = ModelConfig(arch="x070", n_layer=2, n_embd=128, vocab_size=4096)
    settings = SETTINGS.model_copy(update={"total_steps": steps, "save_every": steps})
    inside = 0.0
    step = TorchEngine.step

    def timed(self: TorchEngine, batch: Batch, **rates: float) -> object:
        nonlocal inside
        start = time.perf_counter()
        result = step(self, batch, **rates)
        inside += time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "data"
        with BinidxWriter(prefix) as writer:
            tokens = np.random.default_rng(0).integers(4096, size=1_000_000)
            writer.add(tokens.astype(np.uint16))
        data = open_binidx(prefix)
        prime = magic_prime(data.n_tokens, ctx_len)
        samples = SampleReader(data, prime, ctx_len, config.vocab_size)
        plan = plan_training(settings, samples)
        engine = TorchEngine(build_model(config, init_weights(config, seed=0)), settings)
        files = RunFiles(Path(folder) / "run")
        ends: list[float] = []
        TorchEngine.step = timed  # type: ignore[method-assign, assignment]
        try:
            start = time.perf_counter()
            train(
                engine,
                samples,
                plan,
                files,
                report=lambda line: None,
                sinks=[lambda now: ends.append(time.perf_counter())],
            )
        finally:
            TorchEngine.step = step  # type: ignore[method-assign]
        assert len(read_metrics(files.metrics)) == steps
    whole = ends[-1] - start
    return {
        "steps": steps,
        "whole_s": whole,
        "inside_s": inside,
        "percent": 100 * (whole / inside - 1),
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
