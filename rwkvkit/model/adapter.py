"""What fine-tuning leaves beside a base: an adapter in peft's files, or tuned states."""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rwkvkit import files
from rwkvkit.errors import DataError, SetupError
from rwkvkit.model.checkpoint import read_checkpoint, write_checkpoint
from rwkvkit.model.config import config_from_state_dict

STATE_FILE = "state.pth"
"""The tuned states in the folder of a checkpoint."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WHOLE = "trained.pth"
"""Parameters of the base that were trained with the adapter, in their place."""

_PREFIX = "base_model.model."  # peft's files name modules as seen from its wrapper
_KEY = re.compile(
    r"(?P<module>.+)\.(?:lora_A|lora_B|lora_magnitude_vector|miss_block)(?:\.weight)?"
)


def peft_library() -> ModuleType:
    """Import peft.

    Raises:
        SetupError: it is not installed.
    """
    noisy = logging.getLogger(
        "bitsandbytes"
    )  # which peft imports: it misses a kernel we do not use
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise SetupError(
            f"adapters need the package peft ({error})", hint="pip install 'rwkvkit[peft]'"
        ) from error
    finally:
        noisy.setLevel(level)
    return peft


def write_adapter(
    folder: Path, config: Any, tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> None:
    """Write an adapter into a folder, in files that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        folder: exists already.
        config: peft's configuration of the adapter.
        tensors: its tensors by peft's names for an injected model (``….key.lora_A.weight``).
        whole: parameters of the base that were trained in their place, by name.

    Raises:
        SetupError: a file cannot be written.
    """
    from safetensors.torch import save_file

    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    settings["inference_mode"] = True
    files.write_json(folder / CONFIG, settings, sort_keys=True)
    ready = {f"{_PREFIX}{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        with files.replacing(folder / WEIGHTS) as temporary:
            save_file(ready, temporary, metadata={"format": "pt"})
    except Exception as error:  # safetensors has an error of its own for a full disk
        raise SetupError(
            f"cannot write the adapter: {error}",
            where=str(folder / WEIGHTS),
            hint="check the folder's permissions and the free space",
        ) from error
    if whole:
        write_checkpoint(whole, folder / WHOLE)


def read_adapter(folder: Path) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """Read what :func:`write_adapter` or peft wrote: configuration, tensors, whole parameters.

    Raises:
        DataError: a file is missing or damaged, or the adapter is of a kind RWKV does not have.
        SetupError: peft is not installed.
    """
    peft = peft_library()
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(
                f"no adapter: it has no {name}",
                where=str(folder),
                hint="give the folder a fine-tuning run wrote, such as out/lora/rwkv-adapter",
            )
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # peft and safetensors raise many kinds for damaged files
        raise DataError(
            f"not a readable adapter ({type(error).__name__}: {error})",
            where=str(folder),
            hint="the files may be cut or damaged; fetch or write them again",
        ) from error
    _check_config(config, folder)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    if odd := [name for name in tensors if not _KEY.fullmatch(name)]:
        raise DataError(
            f"an adapter with {odd[0]}, which no RWKV adapter has",
            where=str(folder),
            hint="LoRA, DoRA, PiSSA and MiSS adapters of linear layers are understood",
        )
    whole = read_checkpoint(folder / WHOLE) if (folder / WHOLE).exists() else {}
    return config, tensors, whole


def _check_config(config: Any, folder: Path) -> None:
    """Refuse a kind of adapter that RWKV does not have, and sizes that are no numbers."""
    peft = peft_library()
    if not isinstance(config, peft.LoraConfig | peft.MissConfig):
        kind = getattr(config.peft_type, "value", None) or "no known kind"
        raise DataError(
            f"an adapter of {kind}, which no RWKV adapter is",
            where=str(folder / CONFIG),
            hint="LoRA, DoRA, PiSSA and MiSS adapters of linear layers are understood",
        )
    for name, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(value := getattr(config, name, 1), kind):
            raise DataError(
                f"{name} is {value!r}, not a number",
                where=str(folder / CONFIG),
                hint="the file is damaged: fetch or write it again",
            )


def merged(base: Mapping[str, Tensor], path: Path, where: str | None = None) -> dict[str, Tensor]:
    """Return a base's tensors with an adapter or tuned states merged into them.

    Args:
        base: a whole checkpoint's tensors by name; not modified.
        path: an adapter's folder, a .pth file of tuned states, or a checkpoint's folder with one.
        where: the base's file, for messages.

    Returns:
        All tensors, in the base's dtypes; tuned states as they are.

    Raises:
        DataError: the file or folder is damaged, or made for another model.
        SetupError: an adapter, and peft is not installed.
    """
    path = _states_in(path)
    return _with_adapter(base, path) if path.is_dir() else _with_states(base, path, where)


def _states_in(path: Path) -> Path:
    """Return the tuned states in the folder of a checkpoint; any other path as it is."""
    return path / STATE_FILE if (path / STATE_FILE).is_file() else path


def holds_states(weights: Mapping[str, Tensor]) -> bool:
    """Whether tensors by name are tuned states and nothing else."""
    return all(name.endswith(".att.time_state") for name in weights)


def _with_states(base: Mapping[str, Tensor], path: Path, where: str | None) -> dict[str, Tensor]:
    states = read_checkpoint(path)
    if not holds_states(states):
        raise DataError(
            "holds other tensors than tuned states",
            where=str(path),
            hint="give the .pth file of a state tuning run, or the folder of an adapter",
        )
    config = config_from_state_dict(base, where)
    shape = (config.n_head, config.head_size, config.head_size)
    wanted = {f"blocks.{layer}.att.time_state": shape for layer in range(config.n_layer)}
    if {name: tuple(tensor.shape) for name, tensor in states.items()} != wanted:
        raise DataError(
            f"{len(states)} states of {[*next(iter(states.values())).shape]}, and the base takes "
            f"{config.n_layer} of {[*shape]}",
            where=str(path),
            hint="give the base that the states were tuned on",
        )
    return {**base, **states}


def _with_adapter(base: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    config, tensors, whole = read_adapter(folder)
    by_module: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if found := _KEY.fullmatch(name):
            by_module[found["module"]][name] = tensor
    result = dict(base)
    try:
        for module, own in by_module.items():
            weight = base[f"{module}.weight"]
            result[f"{module}.weight"] = _merged_weight(module, weight, config, own)
        for name, tensor in whole.items():
            result[name] = tensor.reshape(base[name].shape).to(base[name].dtype)
    except (KeyError, RuntimeError, ValueError) as error:
        what = f"{error} is not in it" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"the adapter does not fit the base: {what.splitlines()[0]}",
            where=str(folder),
            hint="give the base that the adapter was trained on",
        ) from error
    return result


def _merged_weight(
    module: str, weight: Tensor, config: Any, tensors: Mapping[str, Tensor]
) -> Tensor:
    """Let peft merge into one matrix, in float32: a model of any size needs no more memory."""
    peft = peft_library()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True), requires_grad=False)
    tree: nn.Module = linear
    for part in reversed(module.split(".")):  # peft looks for the names in its configuration
        tree, inner = nn.Module(), tree
        tree.add_module(part, inner)
    peft.inject_adapter_in_model(config, tree)
    peft.set_peft_model_state_dict(tree, dict(tensors))
    layer: Any = tree.get_submodule(module)
    layer.merge(safe_merge=True)
    return layer.get_base_layer().weight.detach().to(weight.dtype)


def write_record(path: Path, base: Mapping[str, Any]) -> None:
    """Write down which base an adapter or states belong to, beside or inside ``path``."""
    files.write_json(record_path(path), {"base": base})


def record_path(path: Path) -> Path:
    """Where the record of an adapter's base is: ``base.json`` in a folder, NAME.json by a file."""
    return path / "base.json" if path.is_dir() else path.with_suffix(".json")


def check_base(base: Path, path: Path, or_else: str = "") -> None:
    """Compare a base with the record of the one that an adapter or states were trained on.

    Without a record, as with adapters made elsewhere, every base passes.

    Args:
        base: the checkpoint.
        path: the adapter or states.
        or_else: what else a user can do, for the end of the hint.

    Raises:
        DataError: it is another base, or the record is damaged.
    """
    record = record_path(_states_in(path))
    if not record.exists():
        return
    known = files.read_json(record).get("base")
    if isinstance(known, dict) and known.get("sha256") not in (None, files.sha256(base)):
        raise DataError(
            f"was trained on another base, {known.get('path')}",
            where=str(path),
            hint=f"give that base instead of {base}{or_else}",
        )
