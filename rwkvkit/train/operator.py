"""Which operators a run uses, and why."""

from typing import Literal

import torch

from rwkvkit.errors import RecipeError, UsageError
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.x070 import fused_obstacle
from rwkvkit.ops import cross_entropy, rwkv6, rwkv7
from rwkvkit.ops.inputs import Choice, Impl, choose, kernel_obstacle, too_old_for
from rwkvkit.train.device import Placement

_KERNELS = {"x052": rwkv6.KERNELS, "x060": rwkv6.KERNELS, "x070": rwkv7.KERNELS}


def choose_wkv(setting: Impl, placement: Placement, model: ModelConfig, ctx_len: int) -> Choice:
    """Resolve ``train.wkv``.

    Args:
        setting: of the recipe.
        placement: where and in which precision the model trains.
        model: its shape.
        ctx_len: tokens a sample.

    Raises:
        RecipeError: the recipe demands an operator that cannot run there.
    """
    needs = _KERNELS[model.arch].get(model.head_size)
    try:
        return choose(setting, placement.device, placement.dtype, ctx_len, needs)
    except UsageError as error:
        raise RecipeError(
            error.what, where="train.wkv", hint="leave train.wkv out: it takes what can run"
        ) from error


def choose_elementwise(
    setting: Literal["auto", "fused", "torch"], placement: Placement, model: ModelConfig
) -> Choice:
    """Resolve ``train.elementwise``.

    Args:
        setting: of the recipe.
        placement: where and in which precision the model trains.
        model: its shape.

    Returns:
        ``fused`` or ``torch``, and why.

    Raises:
        RecipeError: the recipe demands kernels where there are none.
    """
    if setting == "torch":
        return Choice("torch", "elementwise torch: as demanded")
    obstacle = _fused_obstacle(placement, model)
    if setting == "auto":
        if obstacle:
            return Choice("torch", f"elementwise torch: {obstacle}")
        return Choice("fused", "elementwise fused: kernels for this GPU")
    if obstacle:
        raise RecipeError(
            f"elementwise is fused, but {obstacle}",
            where="train.elementwise",
            hint="leave train.elementwise out: it takes what can run",
        )
    return Choice("fused", "elementwise fused: as demanded")


def _fused_obstacle(placement: Placement, model: ModelConfig) -> str | None:
    device, dtype = placement.device, placement.dtype
    if obstacle := fused_obstacle(model):
        return obstacle
    if device.type != "cuda":
        return f"the device is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels take bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    if obstacle := kernel_obstacle(device):
        return obstacle
    if too_old_for(device, dtype):
        return "the kernels need an sm_80 or newer, an sm_75 for fp16"
    return None


def choose_loss(wkv: Choice, placement: Placement) -> Choice:
    """Say what judges the logits: the cross entropy kernel, or plain PyTorch.

    Args:
        wkv: the WKV operator: a recipe that does without kernels there does so here.
        placement: where and in which precision the model trains.
    """
    return cross_entropy.choose(wkv.impl, placement.device, placement.dtype)
