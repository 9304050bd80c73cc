"""One of two processes that train small models under DeepSpeed; the test asserts what it writes.

Usage: python deepspeed_cases.py RANK PORT FOLDER
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.backend import choose_backend
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.deepspeed_engine import DeepSpeedEngine
from rwkvkit.train.device import Placement
from rwkvkit.train.engine import Engine, TorchEngine
from rwkvkit.train.group import Group, Solo, joined
from rwkvkit.train.place import Place
from rwkvkit.train.portion import WholeModel

CPU = torch.device("cpu")
GLOBAL_BATCH = 4
RESUMES = [
    *((stage, stage, torch.bfloat16) for stage in (1, 2, 3)),
    *((saved, loaded, torch.float32) for saved, loaded in ((1, 3), (3, 2), (2, 0), (0, 3))),
]


def engine_of(arch: str, group: Group, dtype: torch.dtype = torch.float32, **more: Any) -> Engine:
    passes = more.setdefault("accumulate_grad_batches", 1)
    config = TrainConfig(
        **{"micro_bsz": GLOBAL_BATCH // group.world // passes, "lr_init": 1e-3, "lr_final": 1e-3},
        **{"weight_decay": 0.1, "engine": "deepspeed" if "zero" in more else "torch"},
        **more,
    )
    shape = ModelConfig(arch=arch, n_layer=2, n_embd=32, head_size=16, vocab_size=41)
    model = build_model(shape, init_weights(shape, 3)).train()
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
    long = {"sampling": {"order": "infctx", "truncate": 2}}  # 4 segments, gradients over 2
    found["segments plain"] = losses(engine_of("x070", Solo(), **long), Solo(), 0, 10, 4)
    for zero in (2, 3):
        engine = engine_of("x070", group, zero=zero, accumulate_grad_batches=2, **long)
        found[f"segments {zero}"] = losses(engine, group, 0, 10, 4)
    return found


def resumes(group: Group, folder: Path) -> dict[str, list[float]]:
    """A state saved by one stage after 5 steps goes on under another; and in one process."""
    found = {}
    for saved, loaded, dtype in RESUMES:
        name = f"{saved} to {loaded}"
        here = folder / name.replace(" ", "-")
        if group.rank == 0:
            here.mkdir()
        group.gather(None)
        more = [{"zero": zero} if zero else {} for zero in (saved, loaded)]
        engine = engine_of("x060", group, dtype, **more[0])
        losses(engine, group, 0, 3)
        engine.save(here)
        group.gather(None)
        found[f"{name} unbroken"] = losses(engine, group, 3, 6)
        other = engine_of("x060", group, dtype, **more[1])
        other.load(here)
        found[f"{name} resumed"] = losses(other, group, 3, 6)
        alone = engine_of("x060", Solo(), dtype)
        alone.load(here)
        found[f"{name} alone"] = losses(alone, Solo(), 3, 6)
    return found


def skips(group: Group) -> dict[str, Any]:
    """A gradient that is not finite in one process: all skip the step, nothing changes."""
    found = {}
    for zero in (1, 2, 3):
        for dtype in (torch.float32, torch.bfloat16)[zero == 3 :]:
            engine = engine_of("x070", group, dtype, zero=zero)
            step(engine, group, 0)
            before = engine._weights()
            weight = engine.model.blocks[0].att.output.weight
            factor = math.nan if group.rank == 1 else 1.0
            hook = weight.register_hook(lambda gradient, by=factor: gradient * by)
            result = step(engine, group, 1)
            hook.remove()
            after = engine._weights()
            same = all(torch.equal(before[name], after[name]) for name in before)
            onward = step(engine, group, 2)
            found[f"{dtype} zero {zero}"] = [result.skipped, same, onward.skipped]
    return found


def main(rank: str, port: str, folder: str) -> None:
    torch.set_num_threads(1)
    place = Place(int(rank), 2, int(rank), f"127.0.0.1:{port}", "rwkvkit")
    with joined(place, on_gpu=False) as group:
        found = {
            "curves": curves(group),
            "resumes": resumes(group, Path(folder)),
            "skips": skips(group),
        }
        if group.rank == 0:
            (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
