"""The engine that a run trains with: its model loaded, adapted, compiled and on its device."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rwkvkit.model.checkpoint import build_model, read_checkpoint
from rwkvkit.train.adapt import apply_tuning
from rwkvkit.train.engine import Engine, TorchEngine
from rwkvkit.train.group import Group
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.recorder import record_passes
from rwkvkit.workflow.choices import Choices


def make_engine(
    choices: Choices,
    plan: TrainPlan,
    weights: tuple[Path, str],
    *,
    seed: int,
    group: Group,
    report: Callable[[str], None],
) -> Engine:
    """Load the weights that a run starts from, and make the engine that trains them.

    Args:
        choices: the run's.
        plan: the run's.
        weights: the checkpoint, and its sha256.
        seed: for what adapters draw.
        group: the processes that train together; each calls this.
        report: is told what happens on the way.

    Raises:
        DataError: the checkpoint is missing, damaged or of another model.
    """
    settings, placement = choices.settings, plan.placement
    path, sha256 = weights
    sharded = plan.backend.zero == 3
    # ZeRO-3 takes its part of weight after weight out of the file; adapters change weights.
    mapped = sharded and not settings.tuning.is_adapter
    model = build_model(
        choices.model,
        read_checkpoint(path),
        grad_cp=settings.grad_cp,
        impl=choices.impl(placement),
        where=str(path),
        copy=not mapped,
    )
    portion = apply_tuning(
        model,
        settings.tuning,
        {"path": str(path), "sha256": sha256},
        # ZeRO-3 cuts the weights up on the host: as a whole they may not fit a GPU.
        device=torch.device("cpu") if sharded else placement.device,
        dtype=placement.dtype,
        seed=seed,
        convert=not mapped,
    )
    if choices.elementwise(placement).impl == "fused":
        model.fuse_elementwise()
    if plan.compile:
        # Padded batches have up to 16 widths; a graph for each would be more than torch keeps.
        model.compile_blocks(dynamic=settings.sampling.order == "padded")
    model.train()
    if plan.backend.engine == "torch":
        recording = partial(record_passes, placement.device, report, demanded=plan.graphs.demanded)
        recorder = recording if plan.graphs.on else None
        return TorchEngine(model, settings, placement.dtype, portion, group, recorder)
    from rwkvkit.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        model, settings, plan.backend, placement.dtype, placement.device, portion, group
    )
