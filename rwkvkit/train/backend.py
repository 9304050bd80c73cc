"""Which engine trains, and DeepSpeed's settings: derived from the recipe, or checked against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rwkvkit.errors import RecipeError
from rwkvkit.resources import bundled
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement

_Name = Literal["torch", "deepspeed"]
_SEVERAL_GPUS_STAGE = 2
_BUCKET = 5e8  # DeepSpeed's own


@dataclass(frozen=True)
class Backend:
    """The engine of a run.

    Attributes:
        engine: ``torch`` or ``deepspeed``.
        zero: DeepSpeed's ZeRO stage; 0 under torch.
        settings: what ``deepspeed.initialize`` is given; empty under torch.
        reason: one line for people.
    """

    engine: _Name
    zero: int
    settings: Mapping[str, Any]
    reason: str


def choose_backend(config: TrainConfig, placement: Placement, processes: int) -> Backend:
    """Choose the engine and resolve DeepSpeed's settings.

    Args:
        config: the recipe's settings.
        placement: device and precision.
        processes: how many train together.

    Raises:
        RecipeError: settings contradict each other, or the settings file cannot be read.
    """
    engine, why = _engine(config, placement, processes)
    if engine == "torch":
        shared = ", gradients added up once a step" if processes > 1 else ""
        return Backend("torch", 0, {}, f"engine torch{shared}: {why}")
    given = _read(config.deepspeed) if config.deepspeed else {}
    stage = _stage(config, given)
    settings = _merge(given, _derive(config, placement, stage, processes), config)
    return Backend("deepspeed", stage, settings, f"engine deepspeed, ZeRO-{stage}: {why}")


def reduce_bucket(backend: Backend) -> float:
    """Return the elements of the buffers through which DeepSpeed reduces gradients."""
    given = _section(backend.settings, "zero_optimization")
    double = backend.zero == 2 and given.get("overlap_comm", False)
    return float(given.get("reduce_bucket_size", _BUCKET)) * (2 if double else 1)


def _engine(config: TrainConfig, placement: Placement, processes: int) -> tuple[_Name, str]:
    """Return the engine and why it is taken.

    Raises:
        RecipeError: the recipe asks for DeepSpeed and against it.
    """
    needs = [
        name
        for name, asked in (
            ("train.deepspeed", config.deepspeed),
            (f"train.zero {config.zero}", config.zero),
            (f"train.offload {config.offload}", config.offload != "none"),
            ("precision fp16", placement.dtype == torch.float16),
        )
        if asked
    ]
    if config.engine == "torch":
        if needs:
            raise RecipeError(
                f"train.engine is torch, but {' and '.join(needs)} needs DeepSpeed",
                where="train.engine",
                hint="leave one of them out",
            )
        return "torch", "train.engine in the recipe"
    if config.engine == "auto" and not needs:
        if processes == 1:
            return "torch", "one process"
        if config.zero == 0:
            return "torch", "train.zero 0"
        if placement.device.type != "cuda":
            return "torch", "no GPUs"
    if config.zero == 0:
        hint = "set train.zero to 1, 2 or 3, or train.engine to torch, which keeps them in fp32"
        if needs:
            hint = f"leave it out: {' and '.join(needs)} needs DeepSpeed"
        raise RecipeError(
            "DeepSpeed's stage 0 shards nothing and would add bf16 gradients up in bf16",
            where="train.zero",
            hint=hint,
        )
    why = "several GPUs" if config.engine == "auto" else "train.engine in the recipe"
    return "deepspeed", ", ".join(needs) or why


def _stage(config: TrainConfig, given: dict[str, Any]) -> int:
    """Return DeepSpeed's stage: the recipe's, or the settings file's, or what fits the rest.

    Raises:
        RecipeError: there is no such stage, or another setting needs another one.
    """
    stated = _section(given, "zero_optimization").get("stage")
    if stated is not None and (type(stated) is not int or stated not in (1, 2, 3)):
        raise RecipeError(
            f"zero_optimization.stage is {stated!r}, which is none of ZeRO's stages 1, 2 and 3",
            where=config.deepspeed,
            hint="give one of them, or leave it out",
        )
    stage = config.zero or stated or (3 if config.offload == "all" else _SEVERAL_GPUS_STAGE)
    if config.offload == "all" and stage != 3:
        raise RecipeError(
            f"parameters can be offloaded under ZeRO-3 only, and the stage is {stage}",
            where="train.offload",
            hint="set train.zero to 3, or train.offload to optimizer",
        )
    if config.compile is True and stage == 3:
        # Measured on a CPU: right, but each block is compiled anew until torch gives up.
        raise RecipeError(
            "ZeRO-3 gathers weights in hooks that torch.compile cannot take into its graphs",
            where="train.compile",
            hint="leave train.compile out, or set train.zero to 2",
        )
    return stage


def _derive(
    config: TrainConfig, placement: Placement, stage: int, processes: int
) -> dict[str, Any]:
    """Return the settings that follow from the recipe; all of them, even DeepSpeed's defaults."""
    host = {"device": "cpu", "pin_memory": placement.device.type == "cuda"}
    zero: dict[str, Any] = {"stage": stage}
    if config.offload != "none":
        zero["offload_optimizer"] = host
    if config.offload == "all":
        zero["offload_param"] = host
    settings: dict[str, Any] = {
        "train_batch_size": config.global_batch(processes),
        "train_micro_batch_size_per_gpu": config.micro_bsz,
        "gradient_accumulation_steps": config.accumulate_grad_batches,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, which nothing has to compile
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": placement.dtype == torch.bfloat16, "check_grad_overflow": True},
        "fp16": {"enabled": placement.dtype == torch.float16},
        "steps_per_print": 1 << 62,  # its own progress lines
    }
    return settings


def _merge(given: dict[str, Any], derived: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Fill a file's settings with the derived ones.

    Raises:
        RecipeError: a value contradicts the recipe.
    """
    wrong = [
        f"{key}: leave it out, the recipe decides it"
        for key in ("optimizer", "scheduler", "checkpoint")
        if key in given
    ]

    def fill(given: dict[str, Any], derived: dict[str, Any], above: str) -> dict[str, Any]:
        merged = dict(given)
        for key, value in derived.items():
            name, found = f"{above}{key}", given.get(key, value)
            if isinstance(value, dict) and isinstance(found, dict):
                merged[key] = fill(found, value, f"{name}.")
            elif found == value:
                merged[key] = value
            elif key != "pin_memory":
                wrong.append(f"{name} is {found}, the recipe says {value}")
        return merged

    merged = fill(given, derived, "")
    wrong += [
        f"zero_optimization.{key}: the recipe says train.offload {config.offload}"
        for key in ("offload_optimizer", "offload_param")
        if key in _section(given, "zero_optimization")
        and key not in derived["zero_optimization"]
        and _section(given["zero_optimization"], key).get("device", "cpu") != "none"
    ]
    if wrong:
        raise RecipeError(
            f"the DeepSpeed settings contradict the recipe: {'; '.join(wrong)}",
            where=config.deepspeed,
            hint="leave those keys out of the file, or change the recipe's train section",
        )
    return merged


def _section(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, dict) else {}


def _stated(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that say ``auto`` or nothing, at any depth."""
    return {
        key: _stated(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value not in ("auto", None)
    }


def _read(name: str) -> dict[str, Any]:
    """Read settings from a path, or from those that ship by name; see ``_stated``."""
    shipped = {path.stem: path for path in sorted((bundled("configs") / "deepspeed").iterdir())}
    path = Path(name) if Path(name).is_file() else shipped.get(name)
    if path is None:
        raise RecipeError(
            f"{name} does not exist (looked in {Path.cwd()} and among the built-in ones)",
            where="train.deepspeed",
            hint=f"give the path of a .json or .yaml file, or one of {', '.join(shipped)}",
        )
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (YAMLError, ValueError) as error:
        raise RecipeError(
            f"not readable as JSON or YAML: {str(error).splitlines()[0]}",
            where=str(path),
            hint="correct the file",
        ) from error
    if not isinstance(content, dict):
        raise RecipeError("holds no mapping of settings", where=str(path), hint="correct the file")
    return _stated(content)
