"""Whether passes are recorded as CUDA graphs, and why.

Eager PyTorch starts every operation from the host, one by one. Where a model is so small that its
operations end before the next one is started, a recorded pass, which starts as one, is faster.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from rwkvkit.errors import RecipeError
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import card_at
from rwkvkit.train.estimate import Setup, estimate_times

Setting = bool | Literal["auto"]

# A launch is counted as the least that it takes; eager PyTorch often takes twice that.
_WORTH = 0.5


@dataclass(frozen=True)
class Graphs:
    """The choice.

    Attributes:
        on: whether passes are recorded.
        reason: in a line, for people.
        demanded: the recipe asks for it, so that failing is an error.
    """

    on: bool
    reason: str
    demanded: bool = False


def choose_graphs(
    config: TrainConfig,
    setup: Setup,
    device: torch.device,
    *,
    engine: str,
    compiled: bool,
) -> Graphs:
    """Resolve ``train.cuda_graphs``.

    Args:
        config: the recipe's settings.
        setup: a pass.
        device: where the model trains.
        engine: ``torch`` or ``deepspeed``.
        compiled: whether the blocks are compiled.

    Raises:
        RecipeError: the recipe demands it where it cannot be.
    """
    if config.cuda_graphs is False:
        return Graphs(False, "cuda graphs off: the recipe says so")
    obstacle = _obstacle(config, device, engine)
    if config.cuda_graphs is True:
        if obstacle:
            raise RecipeError(
                f"cuda_graphs is true, but {obstacle}",
                where="train.cuda_graphs",
                hint="leave train.cuda_graphs out: it records passes where that can be",
            )
        return Graphs(True, "cuda graphs on: the recipe says so", demanded=True)
    if obstacle:
        return Graphs(False, f"cuda graphs off: {obstacle}")
    card = card_at(device)
    if card is None:
        return Graphs(False, "cuda graphs off: what they save is not known for this GPU")
    work, launching = estimate_times(setup, card, compiled=compiled)
    text = f"a pass takes about {1e3 * work:.1f} ms, starting its operations {1e3 * launching:.1f}"
    if launching < _WORTH * work:
        return Graphs(False, f"cuda graphs off: {text} (estimates)")
    return Graphs(True, f"cuda graphs on: {text} (estimates)")


def _obstacle(config: TrainConfig, device: torch.device, engine: str) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type}"
    if engine != "torch":
        return f"{engine} runs the passes"
    if config.sampling.order == "infctx":
        return "a sample of infctx is several passes, with a state between them"
    if config.sampling.order == "padded":
        return "padded batches have many widths, and a recording has one"
    if config.grad_cp:
        return "grad_cp is for models that keep the GPU busy"
    if config.dropout > 0 or config.tuning.dropout > 0:
        return "dropout draws other numbers in each pass"
    if config.tuning.quantize != "none":
        return f"nobody has tried it with a base in {config.tuning.quantize}"
    return None
