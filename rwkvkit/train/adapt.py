"""Prepare a model for fine-tuning: what trains, adapters around matrices, what is saved.

R rank, I inputs and O outputs of a matrix.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkvkit.errors import RecipeError
from rwkvkit.files import fsync
from rwkvkit.model.adapter import peft_library, read_adapter, write_adapter, write_record
from rwkvkit.model.checkpoint import read_checkpoint, write_checkpoint
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import weight_shapes
from rwkvkit.model.rwkv import RWKV
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.patterns import matching, plain_name
from rwkvkit.train.portion import Portion, WholeModel
from rwkvkit.train.tuning import TuningConfig

KEY = "train.tuning"
STATE_FILE = "state.pth"


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
        RecipeError: a pattern matches nothing, or nothing is left to train.
    """
    shapes = weight_shapes(config)
    names = list(shapes)
    targets = _targets(tuning, shapes) if tuning.is_adapter else []
    parts = ("lora_A", "lora_B", "lora_magnitude_vector", "miss_block")
    adapters = [f"{target}.{part}.default" for target in targets for part in parts]
    matching(list(tuning.lr_scale), [*names, *adapters], f"{KEY}.lr_scale")
    whole = _trained_names(tuning, names)
    size = sum(torch.Size(shapes[name]).numel() for name in whole)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    if not tuning.is_adapter:
        if not whole:
            raise RecipeError("nothing is left to train", where=f"{KEY}.freeze")
        if len(whole) == len(names):
            return []
        return [f"{tuning.method}: {size:,} of {total:,} parameters train"]
    alpha = "" if tuning.method == "miss" else f" alpha {tuning.effective_alpha}"
    beside = f", and {size:,} parameters of the base" if whole else ""
    return [f"{tuning.method}: rank {tuning.rank}{alpha} at {len(targets)} matrices{beside}"]


def rate_hint(config: TrainConfig) -> list[str]:
    """Return a line if the learning rate is orders of magnitude from what suits the method."""
    state, lr = config.tuning.method == "state", config.lr_init
    if state and lr < 0.01:
        return [f"lr_init {lr:g} hardly moves a state: users take 1, falling to 0.01"]
    if not state and lr > 0.05:
        return [f"lr_init {lr:g} is one for state tuning: weights take 1e-5 to 1e-3"]
    return []


def apply_tuning(model: RWKV, tuning: TuningConfig, base: Mapping[str, Any]) -> Portion:
    """Freeze what does not train, and put adapters where the recipe wants them.

    Args:
        model: with the base's weights, in float32; changed in place.
        tuning: the recipe's section, checked by :func:`check_tuning`.
        base: ``path`` and ``sha256`` of the base's file, kept beside what is saved.

    Returns:
        What checkpoints of the run hold.

    Raises:
        RecipeError: DoRA over a matrix with a row of zeros, which has no direction.
        SetupError: peft is not installed.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    whole = _trained_names(tuning, list(shapes))
    config = _inject(model, tuning, _targets(tuning, shapes)) if tuning.is_adapter else None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or plain_name(name) in whole)
    if config is not None:
        return AdapterPortion(model, config, whole, base)
    return StatePortion(base) if tuning.method == "state" else WholeModel()


class StatePortion:
    """The states that documents start from, in the reference's file of only those tensors."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._base = base

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write ``state.pth`` and its record."""
        self.write(tensors, folder / STATE_FILE)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Read ``state.pth``."""
        _load(model, read_checkpoint(folder / STATE_FILE))

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the states, with the base's fingerprint beside them."""
        states = {name: t for name, t in tensors.items() if name.endswith(".att.time_state")}
        write_record(path, self._base)
        write_checkpoint(states, path)


class AdapterPortion:
    """An adapter, and parameters of the base that train with it, in peft's files.

    PiSSA takes the largest singular part out of each matrix and trains that part. What is saved is
    the change against the base as it was, an adapter of twice the rank: ``B A - B₀ A₀``.

    Args:
        model: with the adapter injected, before any training.
        config: peft's configuration.
        whole: names of parameters of the base that train.
        base: the record of the base's file.
    """

    def __init__(self, model: RWKV, config: Any, whole: set[str], base: Mapping[str, Any]) -> None:
        self._model = model
        self._config = config
        self._whole = whole
        self._base = base
        self._initial: dict[str, Tensor] = {}
        if getattr(config, "init_lora_weights", None) == "pissa":
            start = _adapter_tensors(model, model.state_dict())
            self._initial = {name: tensor.detach().cpu().clone() for name, tensor in start.items()}

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write the adapter's files and the record of its base."""
        own = _adapter_tensors(self._model, tensors)
        config = self._config
        if self._initial:
            own = {name: self._against_base(name, tensor) for name, tensor in own.items()}
            config = type(config)(
                r=2 * config.r, lora_alpha=2 * config.lora_alpha,
                lora_dropout=config.lora_dropout, target_modules=config.target_modules,
            )  # fmt: skip
        whole = {plain_name(n): t for n, t in tensors.items() if plain_name(n) in self._whole}
        write_adapter(folder, config, own, whole)
        write_record(folder, self._base)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Read the adapter's files."""
        _, own, whole = read_adapter(folder)
        if self._initial:
            own = self._split(own)
        named = {plain_name(name): name for name in model.state_dict()}
        peft_library().set_peft_model_state_dict(model, own)
        _load(model, {named[name]: tensor for name, tensor in whole.items()})

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the adapter as a folder."""
        beside = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            self.save(tensors, beside)
            if path.exists():
                shutil.rmtree(path)
            beside.rename(path)
            fsync(path.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _against_base(self, name: str, tensor: Tensor) -> Tensor:
        """[A; A₀] and [B, -B₀], in the precision of the start."""
        start = self._initial[name]
        now = tensor.detach().cpu().to(start.dtype)
        return torch.cat([now, start], 0) if ".lora_A." in name else torch.cat([now, -start], 1)

    def _split(self, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take [A; A₀] and [B, -B₀] apart; the matrices lose B₀ A₀ as they did in that run."""
        rank = self._config.r
        own, start = {}, {}
        for name, tensor in saved.items():
            first, second = tensor.split(rank, 0 if ".lora_A." in name else 1)
            own[name] = first.contiguous()
            start[name] = second.contiguous() if ".lora_A." in name else -second
        scale = self._config.lora_alpha / rank
        for name in (name for name in start if ".lora_A." in name):
            module = name.partition(".lora_A.")[0]
            other = name.replace(".lora_A.", ".lora_B.")
            if all(torch.equal(start[key], self._initial[key]) for key in (name, other)):
                continue  # a machine that computes other singular vectors comes here
            weight = self._model.get_parameter(f"{module}.base_layer.weight")
            difference = self._initial[other] @ self._initial[name] - start[other] @ start[name]
            weight.data += scale * difference.to(weight)
        self._initial = start
        return own


def _trained_names(tuning: TuningConfig, names: list[str]) -> set[str]:
    """Names of the model's own parameters that train."""
    if tuning.method == "state":
        chosen = {name for name in names if name.endswith(".att.time_state")}
    elif tuning.train or tuning.is_adapter:
        chosen = matching(tuning.train, names, f"{KEY}.train")
    else:
        chosen = set(names)
    return chosen - matching(tuning.freeze, sorted(chosen), f"{KEY}.freeze")


def _targets(tuning: TuningConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Modules of the blocks' matrices that the recipe's targets match."""
    matrices = [
        name
        for name, shape in shapes.items()
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2
    ]
    found = matching(tuning.targets, matrices, f"{KEY}.targets")
    return [name.removesuffix(".weight") for name in matrices if name in found]


def _inject(model: RWKV, tuning: TuningConfig, targets: list[str]) -> Any:
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
    peft.inject_adapter_in_model(config, model)
    return config


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".miss_" in name


def _adapter_tensors(model: RWKV, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = peft_library().get_peft_model_state_dict(
        model, state_dict=dict(tensors)
    )
    return found


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors by name over those of a model; names it does not have are a bug."""
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown, unknown
