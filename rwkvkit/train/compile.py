"""Whether torch.compile fuses the blocks' elementwise work, and why."""

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Literal

import torch

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig

Setting = bool | Literal["auto"]

EAGER_COMPILED, FUSED_COMPILED = (476, 185), (120, 112)
"""Passes of tokens x channels x 2 bytes that a block of x070 makes in a forward and backward pass,
matrix products and WKV apart: eager and compiled, in plain PyTorch and with the kernels of
``ops.fused``. Those of eager execution are the footprint's, those of compiled code counted by hand:
beside the kernels only residuals and norms are left to be fused."""

_BYTES_PER_SECOND = 4e12  # what an H200 copies: on a slower card compiling saves more
_COST_SECONDS = 120  # two graphs, forward and backward: 30 to 100 s on a CPU, a guess for a GPU


@dataclass(frozen=True)
class Compilation:
    """The choice.

    Attributes:
        on: whether the blocks are compiled.
        reason: in a line, for people.
    """

    on: bool
    reason: str


def choose_compile(
    setting: Setting,
    device: torch.device,
    model: ModelConfig,
    tokens: int,
    *,
    fused: bool = False,
    zero: int = 0,
) -> Compilation:
    """Resolve ``train.compile``.

    Args:
        setting: of the recipe.
        device: where the model trains.
        model: the model's shape.
        tokens: that the run trains on.
        fused: whether hand-written kernels do most of the elementwise work.
        zero: DeepSpeed's stage; ``choose_backend`` refuses a demand under stage 3.

    Raises:
        RecipeError: the recipe demands it, and this machine has no compiler for it.
    """
    lacking = missing(device)
    if setting is True and lacking:
        raise RecipeError(
            f"compile is true, but {lacking}",
            where="train.compile",
            hint="leave train.compile out, or install what is missing",
        )
    if setting != "auto":
        return Compilation(setting, f"compile {'on' if setting else 'off'}: the recipe says so")
    if device.type != "cuda":
        return Compilation(False, f"compile off: on {device.type} it takes longer than it saves")
    if zero == 3:
        return Compilation(False, "compile off: ZeRO-3 gathers weights in hooks")
    if lacking:
        return Compilation(False, f"compile off: {lacking}")
    eager, compiled = FUSED_COMPILED if fused else EAGER_COMPILED
    seconds = 2 * (eager - compiled) * model.n_layer * model.n_embd * tokens / _BYTES_PER_SECOND
    text = f"would save about {seconds:,.0f} s of the run and take about {_COST_SECONDS} s"
    if seconds <= _COST_SECONDS:
        return Compilation(False, f"compile off: it {text}")
    return Compilation(True, f"compile on: it {text} (estimates)")


def missing(device: torch.device) -> str | None:
    """Say what torch.compile lacks here; a GPU's code is made by Triton."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "triton makes no code for this GPU"
    if not any(map(shutil.which, ("gcc", "g++", "clang", "clang++", "cc", "c++"))):
        return "there is no C or C++ compiler"  # Triton builds its launchers with one
    return None
