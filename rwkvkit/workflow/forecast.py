"""What a recipe's run will need and how fast it may be, in lines for people."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from rwkvkit.errors import SetupError
from rwkvkit.model.config import ModelConfig
from rwkvkit.ops.inputs import Impl
from rwkvkit.train.adapt import trained_names, trained_parameters, weight_bytes
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement, card_at
from rwkvkit.train.estimate import Memory, Setup, estimate_memory, estimate_speed, would_fit
from rwkvkit.train.operator import choose_elementwise, choose_wkv
from rwkvkit.train.sampling import SamplingConfig


@dataclass(frozen=True)
class Forecast:
    """Estimates of a run.

    Attributes:
        memory: bytes on each device.
        tokens_per_s: of one device; None where its data sheet is not known.
        lines: the same for people, with what to change where it would not fit.
    """

    memory: Memory
    tokens_per_s: float | None
    lines: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """The estimates for ``--json``."""
        return {"memory": vars(self.memory), "tokens_per_s": self.tokens_per_s}


def setup_of(
    settings: TrainConfig, model: ModelConfig, ctx_len: int, placement: Placement
) -> Setup:
    """Return what decides the memory and speed of a recipe's passes."""
    return Setup(
        model=model,
        micro_bsz=settings.micro_bsz,
        ctx_len=ctx_len,
        dtype=placement.dtype,
        grad_cp=settings.grad_cp,
        impl=cast("Impl", choose_wkv(settings.wkv, placement, model, ctx_len).impl),
        fused=choose_elementwise(settings.elementwise, placement, model).impl == "fused",
        on_gpu=placement.device.type == "cuda",
        accumulate=settings.accumulate_grad_batches,
        carried=_carried(settings.sampling),
        trained=trained_parameters(settings.tuning, model),
        trained_names=trained_names(settings.tuning, model),
        weight_bytes=weight_bytes(settings.tuning, model, placement.dtype),
    )


def _carried(sampling: SamplingConfig) -> int:
    """Segments of a loss; where only the data says how many there are, at least one."""
    if sampling.order != "infctx" or sampling.segments == 1:
        return 0
    known = [count for count in (sampling.truncate, sampling.segments) if count]
    return min(known, default=1)


def forecast(
    setup: Setup, device: torch.device, *, compiled: bool, recorded: bool = False
) -> Forecast:
    """Estimate a run's memory and speed.

    Args:
        setup: its passes.
        device: where it runs.
        compiled: whether the blocks are compiled.
        recorded: whether passes are CUDA graphs.
    """
    memory = estimate_memory(setup, recorded=recorded)
    available, place = _available(device)
    lines = [f"memory, estimated: {memory}; {place} has {available / 1e9:.1f} GB"]
    if memory.total > available:
        lines.append(f"that does not fit: {change_to_fit(setup, device)}")
    speed = None
    if card := card_at(device):
        speed = estimate_speed(setup, card, compiled=compiled, recorded=recorded)
        lines.append(f"speed, estimated from the card's data sheet: {speed:,.0f} tokens/s")
    return Forecast(memory, speed, tuple(lines))


@contextmanager
def memory_hint(setup: Setup, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into an error that says what would fit.

    Args:
        setup: the passes.
        device: where they run.

    Raises:
        SetupError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:  # on a CPU torch has no class of its own for it
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "allocate" not in str(error):
            raise
        raise SetupError(
            f"out of memory: {str(error).splitlines()[0]}",
            where="train",
            hint=change_to_fit(setup, device),
        ) from error


def change_to_fit(setup: Setup, device: torch.device) -> str:
    """Say which settings would make a step that ran out of memory fit, by the estimates.

    Where the estimate says that it had fitted, something else takes memory too: then the changes
    are those that save a fifth.

    Args:
        setup: the passes.
        device: where they run.
    """
    limit = min(_available(device)[0], 0.8 * estimate_memory(setup).total)
    changes = [text for text, _ in would_fit(setup, limit)]
    if not changes:
        return "a smaller model or ctx_len would need less"
    return f"set {', or '.join(changes)} (by estimate)"


def _available(device: torch.device) -> tuple[float, str]:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, "the GPU"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine"
