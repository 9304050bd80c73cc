"""One of two processes that train small models under DeepSpeed; the test asserts what it writes.

Usage: python deepspeed_cases.py RANK PORT FOLDER
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from rwkvkit.errors import RwkvkitError
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.backend import choose_backend
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.deepspeed_engine import DeepSpeedEngine
from rwkvkit.train.device import Placement
from rwkvkit.train.engine import Engine, StepResult, TorchEngine
from rwkvkit.train.group import Group, Solo, joined
from rwkvkit.train.loop import train
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.place import Place
from rwkvkit.train.plan import plan_training
from rwkvkit.train.portion import WholeModel
from rwkvkit.train.run_files import RunFiles

CPU = torch.device("cpu")
GLOBAL_BATCH = 4
ENGINES: dict[str, dict[str, Any]] = {
    "0": {},
    "1": {"zero": 1},
    "2": {"zero": 2},
    "3": {"zero": 3},
    "2 offloaded": {"zero": 2, "offload": "optimizer"},
    "3 offloaded": {"zero": 3, "offload": "all"},
}
RESUMES = [
    *((each, each, torch.bfloat16) for each in ENGINES if each != "0"),
    *((saved, loaded, torch.float32) for saved, loaded in (("1", "3"), ("3", "2"), ("2", "0"))),
    *((saved, loaded, torch.float32) for saved, loaded in (("0", "3"), ("1", "3 offloaded"))),
    ("3 offloaded", "2 offloaded", torch.float32),
]
SKIPS = [
    (1, torch.float32),
    (1, torch.bfloat16),
    (2, torch.float32),
    (2, torch.bfloat16),
    (3, torch.float32),
    (3, torch.bfloat16),
]


def shape_of(arch: str) -> ModelConfig:
    return ModelConfig(arch=arch, n_layer=2, n_embd=32, head_size=16, vocab_size=41)


def initial(arch: str) -> dict[str, torch.Tensor]:
    return init_weights(shape_of(arch), 3)


def engine_of(arch: str, group: Group, dtype: torch.dtype = torch.float32, **more: Any) -> Engine:
    passes = more.setdefault("accumulate_grad_batches", 1)
    config = TrainConfig(
        **{"micro_bsz": GLOBAL_BATCH // group.world // passes, "lr_init": 1e-3, "lr_final": 1e-3},
        **{"weight_decay": 0.1, "engine": "deepspeed" if "zero" in more else "torch"},
        **more,
    )
    mapped = more.get("zero") == 3  # the engine converts the weights one by one
    model = build_model(shape_of(arch), initial(arch), copy=not mapped).train()
    backend = choose_backend(config, Placement(CPU, dtype, ("", "")), group.world)
    if backend.engine == "torch":
        return TorchEngine(model, config, dtype, None, group)
    return DeepSpeedEngine(model, config, backend, dtype, CPU, WholeModel(), group)


def step(engine: Engine, group: Group, number: int, segments: int = 1) -> Any:
    generator = torch.Generator().manual_seed(number)
    x, y = (torch.randint(41, (GLOBAL_BATCH, 12), generator=generator) for _ in range(2))
    mask = (torch.rand(x.shape, generator=generator) < 0.7).byte() if number % 2 else None
    share = GLOBAL_BATCH // group.world
    rows = slice(group.rank * share, (group.rank + 1) * share)
    batch = Batch(x[rows], y[rows], None if mask is None else mask[rows], segments=segments)
    return engine.step(batch, lr=1e-3, weight_decay=0.1)


def losses(engine: Engine, group: Group, first: int, last: int, segments: int = 1) -> list[float]:
    return [step(engine, group, number, segments).loss for number in range(first, last)]


def curves(group: Group) -> dict[str, list[float]]:
    """30 steps by architecture and stage, beside the plain engine in one process."""
    found = {}
    for arch in ("x052", "x060", "x070"):
        found[f"{arch} plain"] = losses(engine_of(arch, Solo()), Solo(), 0, 30)
        found[f"{arch} zero 0"] = losses(engine_of(arch, group), group, 0, 30)
        for zero in (1, 2, 3):
            found[f"{arch} zero {zero}"] = losses(engine_of(arch, group, zero=zero), group, 0, 30)
    bf16 = torch.bfloat16
    found["bf16 plain"] = losses(engine_of("x070", Solo(), bf16), Solo(), 0, 30)
    for zero in (1, 2, 3):
        found[f"bf16 zero {zero}"] = losses(engine_of("x070", group, bf16, zero=zero), group, 0, 30)
    for zero in (2, 3):
        engine = engine_of("x070", group, zero=zero, accumulate_grad_batches=2)
        found[f"accumulated {zero}"] = losses(engine, group, 0, 30)
    for name in ("2 offloaded", "3 offloaded"):
        settings = ENGINES[name]
        found[name] = losses(engine_of("x070", group, **settings), group, 0, 10)
        found[f"bf16 {name}"] = losses(engine_of("x070", group, bf16, **settings), group, 0, 10)
    long = {"sampling": {"order": "infctx", "truncate": 2}}  # 4 segments, gradients over 2
    found["segments plain"] = losses(engine_of("x070", Solo(), **long), Solo(), 0, 10, 4)
    for zero in (2, 3):
        engine = engine_of("x070", group, zero=zero, accumulate_grad_batches=2, **long)
        found[f"segments {zero}"] = losses(engine, group, 0, 10, 4)
    return found


def masters(group: Group) -> dict[str, bool]:
    """Whether the masters of a bf16 model are the weights it was given, to the last bit."""
    given, found = initial("x070"), {}
    for name in ("1", "2", "3", "3 offloaded"):
        engine = engine_of("x070", group, torch.bfloat16, **ENGINES[name])
        own = {key: engine._state.get(param) for key, param in engine._params.items()}
        found[name] = all(torch.equal(master, given[key]) for key, master in own.items())
    return found


def resumes(group: Group, folder: Path) -> dict[str, list[float]]:
    """A state saved by one engine after 3 steps goes on under another; and in one process."""
    found = {}
    for saved, loaded, dtype in RESUMES:
        name = f"{saved} to {loaded}"
        here = folder / name.replace(" ", "-")
        if group.rank == 0:
            here.mkdir()
        group.gather(None)
        engine = engine_of("x060", group, dtype, **ENGINES[saved])
        losses(engine, group, 0, 3)
        engine.save(here)
        group.gather(None)
        found[f"{name} unbroken"] = losses(engine, group, 3, 6)
        other = engine_of("x060", group, dtype, **ENGINES[loaded])
        other.load(here)
        found[f"{name} resumed"] = losses(other, group, 3, 6)
        alone = engine_of("x060", Solo(), dtype)
        alone.load(here)
        found[f"{name} alone"] = losses(alone, Solo(), 3, 6)
    return found


def skips(group: Group) -> dict[str, Any]:
    """A gradient that is not finite in one process: all skip the step, nothing changes."""
    found = {}
    for zero, dtype in SKIPS:
        engine = engine_of("x070", group, dtype, zero=zero)
        step(engine, group, 0)
        before = engine._state.weights(engine.model)
        weight = engine.model.blocks[0].att.output.weight
        factor = math.nan if group.rank == 1 else 1.0
        hook = weight.register_hook(lambda gradient, by=factor: gradient * by)
        result = step(engine, group, 1)
        hook.remove()
        after = engine._state.weights(engine.model)
        same = all(torch.equal(before[name], after[name]) for name in before)
        onward = step(engine, group, 2)
        found[f"{dtype} zero {zero}"] = [result.skipped, same, onward.skipped]
    return found


class Samples:
    """Random tokens, as the loop asks for them."""

    once, sample_tokens, lines = 1000, 12, ()

    def tokens(self, count: int) -> int:
        return count * self.sample_tokens

    def read(self, start: int, count: int) -> Batch:
        generator = torch.Generator().manual_seed(start)
        tokens = torch.randint(41, (count, 13), generator=generator)
        return Batch(tokens[:, :-1], tokens[:, 1:])


def guards(group: Group, folder: Path) -> dict[str, Any]:
    """The loop, with gradients that are not finite in one process at some steps."""
    found = {}
    for name in ("2", "3"):
        for kind, bad in (("few", {2, 4}), ("many", {3, 4, 5})):
            config = TrainConfig(
                **{"micro_bsz": 2, "lr_init": 1e-3, "lr_final": 1e-3, "total_steps": 6},
                **{"save_every": 2, "precision": "fp32", "guards": {"max_skipped": 3}},
                **ENGINES[name],
            )
            plan = plan_training(config, Samples(), processes=group.world)
            engine = engine_of("x070", group, **ENGINES[name])
            skipped = harm(engine, bad if group.rank == 1 else set())
            files = RunFiles(folder / f"guards {name} {kind}")
            end = None
            try:
                train(engine, Samples(), plan, files, report=str, group=group)
            except RwkvkitError as error:
                end = [type(error).__name__, error.exit_code]
            found[f"{name} {kind}"] = {
                "skipped": group.gather(skipped),
                "ends": group.gather(end),
                "counted": [row["skipped"] for row in read_metrics(files.metrics)],
                "checkpoints": sorted(path.name for path in files.checkpoints.iterdir()),
            }
    return found


def harm(engine: Engine, bad: set[int]) -> list[bool]:
    """Spoil the gradients of some steps, from 1; returns which ones are skipped."""
    step, weight = engine.step, engine.model.blocks[0].att.output.weight
    skipped: list[bool] = []

    def harmed(batch: Batch, **rates: float) -> StepResult:
        factor = math.nan if len(skipped) + 1 in bad else 1.0
        hook = weight.register_hook(lambda gradient: gradient * factor)
        result = step(batch, **rates)
        hook.remove()
        skipped.append(result.skipped)
        return result

    engine.step = harmed
    return skipped


def main(rank: str, port: str, folder: str) -> None:
    torch.set_num_threads(1)
    place = Place(int(rank), 2, int(rank), f"127.0.0.1:{port}", "rwkvkit")
    with joined(place, on_gpu=False) as group:
        found = {
            "curves": curves(group),
            "masters": masters(group),
            "resumes": resumes(group, Path(folder)),
            "skips": skips(group),
            "guards": guards(group, Path(folder)),
        }
        if group.rank == 0:
            (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
