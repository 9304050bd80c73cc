"""Prepare a model for fine-tuning: what trains, and adapters around matrices."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from rwkvkit.errors import RecipeError, SetupError
from rwkvkit.model.adapter import peft_library
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import weight_shapes
from rwkvkit.model.rwkv import RWKV
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.patterns import matching, plain_name
from rwkvkit.train.portion import AdapterPortion, Portion, StatePortion, WholeModel
from rwkvkit.train.quantize import quantize, quantized_bytes
from rwkvkit.train.tuning import TuningConfig

KEY = "train.tuning"
_ADAPTER_PARTS = {  # names of what peft puts beside a matrix
    "lora": ("lora_A", "lora_B"),
    "pissa": ("lora_A", "lora_B"),
    "dora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "miss": ("miss_block",),
}


def result_name(tuning: TuningConfig) -> str:
    """Return the name of what a run leaves in its folder."""
    if tuning.is_adapter:
        return "rwkv-adapter"
    return "rwkv-state.pth" if tuning.method == "state" else "rwkv-final.pth"


def check_tuning(tuning: TuningConfig, config: ModelConfig) -> list[str]:
    """Check the patterns against a model's names; say in lines what will train.

    Args:
        tuning: the recipe's section.
        config: the model's shape, with ``time_state`` for state tuning.

    Raises:
        RecipeError: a pattern matches nothing that trains, or nothing is left to train.
    """
    shapes = weight_shapes(config)
    names = list(shapes)
    targets = _targets(tuning, shapes) if tuning.is_adapter else []
    whole = _trained_names(tuning, names)
    parts = _ADAPTER_PARTS.get(tuning.method, ())
    adapters = [f"{target}.{part}.default" for target in targets for part in parts]
    fixed = [name for name in names if name not in whole]
    matching(list(tuning.lr_scale), [*sorted(whole), *adapters], f"{KEY}.lr_scale", fixed)
    size = sum(torch.Size(shapes[name]).numel() for name in whole)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    if not tuning.is_adapter:
        if not whole:
            raise RecipeError(
                "nothing is left to train",
                where=f"{KEY}.freeze",
                hint="freeze less, or name in train what is to change",
            )
        if len(whole) == len(names):
            return []
        return [f"{tuning.method}: {size:,} of {total:,} parameters train"]
    if odd := sorted(whole & {f"{target}.weight" for target in targets}):
        raise RecipeError(
            f"{odd[0]} would train itself and through its adapter",
            where=f"{KEY}.train",
            hint="leave it out of train, or out of targets",
        )
    alpha = "" if tuning.method == "miss" else f" alpha {tuning.effective_alpha}"
    kept = "" if tuning.quantize == "none" else f" kept in {tuning.quantize}"
    count = f"{trained_parameters(tuning, config):,} parameters train"
    beside = f", {size:,} of them the base's" if whole else ""
    at = f"rank {tuning.rank}{alpha} at {len(targets)} matrices{kept}"
    return [f"{tuning.method}: {at}: {count}{beside}"]


def trained_parameters(tuning: TuningConfig, config: ModelConfig) -> int:
    """Return how many numbers train, adapters included.

    Args:
        tuning: the recipe's section, checked by :func:`check_tuning`.
        config: the model's shape.
    """
    shapes = weight_shapes(config)
    count = sum(math.prod(shapes[name]) for name in _trained_names(tuning, list(shapes)))
    for target in _targets(tuning, shapes) if tuning.is_adapter else []:
        outputs, inputs = shapes[f"{target}.weight"]
        count += tuning.rank * (outputs if tuning.method == "miss" else outputs + inputs)
        count += outputs if tuning.method == "dora" else 0
    return count


def trained_names(tuning: TuningConfig, config: ModelConfig) -> frozenset[str] | None:
    """Return the names of what trains, or has an adapter beside it; None: all.

    Args:
        tuning: the recipe's section, checked by :func:`check_tuning`.
        config: the model's shape.

    Returns:
        Names of the base's weights; those in the blocks without ``blocks.N.``, once for all.
    """
    shapes = weight_shapes(config)
    names = _trained_names(tuning, list(shapes))
    if names == set(shapes):
        return None
    beside = _targets(tuning, shapes) if tuning.is_adapter else []
    names |= {f"{target}.weight" for target in beside}
    return frozenset(re.sub(r"^blocks\.\d+\.", "", name) for name in names)


def weight_bytes(tuning: TuningConfig, config: ModelConfig, dtype: torch.dtype) -> float:
    """Return the bytes of a model's weights in memory, without adapters.

    Args:
        tuning: the recipe's section, checked by :func:`check_tuning`.
        config: the model's shape.
        dtype: of what is not quantized.
    """
    shapes = weight_shapes(config)
    count = sum(map(math.prod, shapes.values())) * float(dtype.itemsize)
    if tuning.quantize != "none":
        for target in _targets(tuning, shapes):
            shape = shapes[f"{target}.weight"]
            count += quantized_bytes(tuning.quantize, shape) - math.prod(shape) * dtype.itemsize
    return count


def rate_hint(config: TrainConfig) -> list[str]:
    """Return a line if the learning rate is orders of magnitude from what suits the method."""
    state, lr = config.tuning.method == "state", config.lr_init
    if state and lr < 0.01:
        return [f"lr_init {lr:g} hardly moves a state: users take 1, falling to 0.01"]
    if not state and lr > 0.05:
        return [f"lr_init {lr:g} is one for state tuning: weights take 1e-5 to 1e-3"]
    return []


def apply_tuning(
    model: RWKV,
    tuning: TuningConfig,
    base: Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    convert: bool = True,
) -> Portion:
    """Freeze what does not train, put adapters where the recipe wants them, move to the device.

    Args:
        model: with the base's weights, in float32; changed in place. On the CPU, so that frozen
            weights never take four bytes on the device.
        tuning: the recipe's section, checked by :func:`check_tuning`.
        base: ``path`` and ``sha256`` of the base's file, kept beside what is saved.
        device: where the model is to train.
        dtype: of the frozen weights; what trains stays in float32.
        seed: of the adapter's initial values, the same in every process of a run.
        convert: False leaves the weights' dtypes to the engine.

    Returns:
        What checkpoints of the run hold.

    Raises:
        RecipeError: DoRA over a matrix with a row of zeros, which has no direction.
        SetupError: peft or bitsandbytes is not installed, or cannot do this on the device.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    whole = _trained_names(tuning, list(shapes))
    config = None
    if tuning.is_adapter:
        with torch.random.fork_rng(devices=[]):  # adapters are made on the CPU, then moved
            torch.manual_seed(seed)
            config = _inject(model, tuning, _targets(tuning, shapes), torch.device(device))
    for name, parameter in model.named_parameters():
        trains = _is_adapter(name) or plain_name(name) in whole
        if parameter.is_floating_point():  # which quantized weights are not
            parameter.requires_grad_(trains)
            if convert:
                parameter.data = parameter.data.to(torch.float32 if trains else dtype)
    model.to(device)
    if config is not None:
        return AdapterPortion(model, config, whole, base)
    return StatePortion(base) if tuning.method == "state" else WholeModel()


def _trained_names(tuning: TuningConfig, names: list[str]) -> set[str]:
    """Names of the model's own parameters that train."""
    if tuning.method == "state":
        chosen = {name for name in names if name.endswith(".att.time_state")}
    elif tuning.train or tuning.is_adapter:
        chosen = matching(tuning.train, names, f"{KEY}.train")
    else:
        chosen = set(names)
    fixed = [name for name in names if name not in chosen]
    return chosen - matching(tuning.freeze, sorted(chosen), f"{KEY}.freeze", fixed)


def _targets(tuning: TuningConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Modules of the blocks' matrices that the recipe's targets match."""
    matrices = [
        name
        for name, shape in shapes.items()
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2
    ]
    found = matching(tuning.targets, matrices, f"{KEY}.targets")
    return [name.removesuffix(".weight") for name in matrices if name in found]


def _inject(model: RWKV, tuning: TuningConfig, targets: list[str], device: torch.device) -> Any:
    peft = peft_library()
    if tuning.method == "miss":
        config = peft.MissConfig(r=tuning.rank, miss_dropout=tuning.dropout, target_modules=targets)
    else:
        config = peft.LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.effective_alpha,
            lora_dropout=tuning.dropout,
            target_modules=targets,
            use_dora=tuning.method == "dora",
            init_lora_weights="pissa" if tuning.method == "pissa" else True,
        )
    for name in targets:
        weight = model.get_parameter(f"{name}.weight")
        if tuning.rank > min(weight.shape):
            raise RecipeError(
                f"{name} is {[*weight.shape]}: a rank of {tuning.rank} is no low rank of it",
                where=f"{KEY}.rank",
                hint=f"take {min(weight.shape) // 2} or less, or other targets",
            )
        if tuning.method == "dora" and not weight.any(1).all():
            raise RecipeError(
                f"{name} has a row of zeros, which DoRA cannot scale",
                where=f"{KEY}.method",
                hint="take lora, or a base that has been trained",
            )
    if tuning.quantize != "none":
        if (tuning.method, tuning.quantize, device.type) == ("dora", "int8", "cpu"):
            raise SetupError(  # its int8 layers lose their scales when peft reads the weight
                "on a CPU bitsandbytes cannot train DoRA over int8",
                where=f"{KEY}.quantize",
                hint="take nf4, or lora",
            )
        quantize(model, targets, tuning.quantize, device)
    peft.inject_adapter_in_model(config, model)
    return config


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".miss_" in name
