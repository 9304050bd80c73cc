"""What training costs beside the model: engines, the loop, checkpoints, and the time to start.

    python benchmarks/train.py --out benchmarks/results/train.json

``engines`` gives tokens/s of whole runs from the command line, on the CPU. ``overhead`` compares
the loop of a real run, its logs and trackers included, with the engine's steps inside it, and these
with a step written by hand; these take turns, and the median of the rounds' ratios counts.
``checkpoints`` saves and loads one state. ``start`` is the time from the command to the first row
of ``metrics.jsonl``.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from torch import nn

from rwkvkit import BinidxWriter
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.recipe.load import load_recipe
from rwkvkit.train.batch import Batch
from rwkvkit.train.checkpoints import CheckpointStore
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.metrics import read_metrics
from rwkvkit.workflow.run import Run

RECIPE = """\
name: bench
ctx_len: {ctx_len}
data: data
model: {{arch: x070, n_layer: {n_layer}, n_embd: {n_embd}, vocab_size: {vocab_size}}}
train: {{micro_bsz: 4, lr_init: 1e-4, lr_final: 1e-5, total_steps: {steps}, save_every: {steps}}}
"""
WEIGHTS = "overhead/rwkv-init.pth"
ENGINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("torch, 1 process", ()),
    ("torch, 2 processes", ("--processes", "2")),
    *(
        (
            f"deepspeed ZeRO {stage}, 2 processes",
            ("--processes", "2", "--set", "train.engine=deepspeed", "--set", f"train.zero={stage}"),
        )
        for stage in (1, 2, 3)
    ),
)


def main() -> None:
    """Measure, print, and write the results."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    shape = {
        name: getattr(arguments, name) for name in ("n_layer", "n_embd", "vocab_size", "ctx_len")
    }
    results = report.header("torch", "numpy") | {"threads": arguments.threads, "shape": shape}
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        _write_data(arguments.vocab_size)
        Path("bench.yaml").write_text(RECIPE.format(**shape, steps=arguments.steps))
        results["overhead"] = _overhead(arguments.rounds)
        config = ModelConfig(
            arch="x070", **{name: shape[name] for name in ("n_layer", "n_embd", "vocab_size")}
        )
        results["checkpoints"] = _checkpoints(config, arguments.rounds)
        results["start"] = _start()
        if not arguments.no_engines:
            results["engines"] = _engines()
    report.save(results, arguments.out)


def _overhead(rounds: int) -> dict[str, float]:
    """Time a run without saving, against the engine's steps, and these against bare steps."""
    run = Run.of(load_recipe("bench.yaml", ("run_dir=overhead",)))
    run.weights.make()
    data = run.data()
    samples = run.samples(data)
    inside, ends = 0.0, [0.0]
    step = TorchEngine.step

    def timed(self: TorchEngine, batch: Batch, **rates: float) -> object:
        nonlocal inside
        start = time.perf_counter()
        result = step(self, batch, **rates)
        ends.append(time.perf_counter())
        if len(ends) > 2:  # the first step warms up; the time before it belongs to no step
            inside += ends[-1] - start
        return result

    TorchEngine.step = timed  # type: ignore[method-assign, assignment]
    try:
        run.train(data, samples, run.plan(samples), report=lambda line: None)
    finally:
        TorchEngine.step = step  # type: ignore[method-assign]
    loop = 100 * ((ends[-1] - ends[1]) / inside - 1)
    weights = init_weights(run.model_config, seed=0)
    batch = samples.read(1, run.settings.micro_bsz)
    engine = TorchEngine(build_model(run.model_config, weights).train(), run.settings)
    bare = _bare_step(build_model(run.model_config, weights).train(), batch)
    turns = (lambda: engine.step(batch, lr=1e-4, weight_decay=0.0), bare)
    taken = np.zeros((4 * rounds + 2, 2))
    for number in range(len(taken)):
        # Each goes first in half of the pairs: what one leaves behind, the other meets.
        for turn in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            turns[turn]()
            taken[number, turn] = time.perf_counter() - start
    by_engine, by_hand = taken[2:].T  # the first ones warm up
    found = {
        "steps": len(ends) - 1,
        "loop_over_engine_percent": round(loop, 2),
        "engine_over_bare_percent": round(100 * (float(np.median(by_engine / by_hand)) - 1), 2),
        "bare_step_ms": round(1e3 * float(by_hand.min()), 1),
    }
    print(
        f"the loop adds {found['loop_over_engine_percent']:.1f} % to the engine's steps, the engine"
        f" {found['engine_over_bare_percent']:.1f} % to a bare step of {found['bare_step_ms']} ms"
    )
    return found


def _bare_step(model: nn.Module, batch: Batch) -> Any:
    """Return a training step as one would write it by hand."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(batch.x, targets=batch.y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def _checkpoints(config: ModelConfig, rounds: int) -> dict[str, float]:
    """Time saving, checking and loading a state with moments, to the disk and back."""
    settings = TrainConfig(micro_bsz=1, lr_init=1e-4, lr_final=1e-5)
    engine = TorchEngine(build_model(config, init_weights(config, seed=0)), settings)
    ids = torch.zeros(1, 16, dtype=torch.long)
    engine.step(Batch(ids, ids), lr=1e-4, weight_decay=0.0)
    store = CheckpointStore(Path("checkpoints"), keep=1)
    save = load = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        saved = store.save(1, engine.save)
        save = min(save, time.perf_counter() - start)
        start = time.perf_counter()
        newest = store.newest(print)
        assert newest is not None
        engine.load(newest.folder)
        load = min(load, time.perf_counter() - start)
    size = sum(path.stat().st_size for path in saved.folder.rglob("*") if path.is_file()) / 1e9
    found = {
        "gb": round(size, 3),
        "save_s_per_gb": round(save / size, 2),
        "load_s_per_gb": round(load / size, 2),
    }
    print(
        f"a checkpoint of {size:.2f} GB: {found['save_s_per_gb']} s/GB to save with hashes and "
        f"fsync, {found['load_s_per_gb']} s/GB to check and load"
    )
    return found


def _start() -> dict[str, float]:
    """Time a command from its start to its first row, with data and weights there."""
    seconds = []
    for name in ("first", "second"):
        log = Path(name) / "metrics.jsonl"
        began = time.perf_counter()
        process = subprocess.Popen(
            _command("--set", f"run_dir={name}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.005)
        seconds.append(time.perf_counter() - began)
        assert process.wait() == 0
    print(f"from the command to the first step done: {min(seconds):.1f} s")
    return {"first_step_s": round(min(seconds), 2)}


def _engines() -> dict[str, dict[str, float]]:
    found = {}
    for number, (name, options) in enumerate(ENGINES):
        folder = f"engine{number}"
        _train(
            *options, "--set", "model.weights=overhead/rwkv-init.pth", "--set", f"run_dir={folder}"
        )
        rows = read_metrics(Path(folder) / "metrics.jsonl")
        speeds = sorted(row["tokens_per_s"] for row in rows[2:])
        found[name] = {
            "tokens_per_s": round(speeds[len(speeds) // 2]),
            "tokens_per_step": rows[0]["tokens"],
            "loss": rows[-1]["loss"],
        }
        print(f"{name:32} {found[name]['tokens_per_s']:>8,} tok/s")
    return found


def _train(*options: str) -> None:
    done = subprocess.run(_command(*options), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(options)}: {done.stderr}")


def _command(*options: str) -> list[str]:
    weights = ("--set", f"model.weights={WEIGHTS}")
    return [sys.executable, "-m", "rwkvkit", "train", "bench.yaml", *weights, *options]


def _write_data(vocab_size: int) -> None:
    with BinidxWriter(Path("data")) as writer:
        ids = np.random.default_rng(0).integers(min(vocab_size, 1 << 16), size=1_000_000)
        writer.add(ids.astype(np.uint16))


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--ctx-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--no-engines", action="store_true", help="leave out the engines")
    arguments = parser.parse_args()
    arguments.out = arguments.out and arguments.out.absolute()
    return arguments


if __name__ == "__main__":
    main()
