"""Checkpoint files (.pth, a flat dict of tensors) and the models made from them."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from rwkvkit.errors import DataError, RecipeError, SetupError, UsageError
from rwkvkit.files import replacing, unreadable
from rwkvkit.model.config import ModelConfig, config_from_state_dict, reasons
from rwkvkit.model.rwkv import RWKV, GradCp
from rwkvkit.ops.inputs import Impl

# The reference trainer writes these three, although layer 0 makes v_first and never reads them.
_UNUSED = frozenset(f"blocks.0.att.{name}" for name in ("v0", "v1", "v2"))
_WRAPPED = "_forward_module."


def load_model(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    dropout: float = 0.0,
    adapter: str | os.PathLike[str] | None = None,
) -> RWKV:
    """Load an RWKV model; architecture, sizes and ranks are read off the tensors.

    ``model(idx)`` takes token ids, int64 [B, T], and returns logits [B, T, V].
    ``model(idx, state=s)`` continues from a state and returns logits and the new state;
    ``model.zero_state(B)`` is the state at the start of a document.

    Args:
        path_or_state_dict: a .pth file of x052, x060 or x070 weights, or its tensors by name, as
            published or as written by the reference trainer. They are copied, never modified.
        dtype: of the weights and activations; the WKV state and the decays stay in float32 (in
            float64 for float64).
        device: where the model lives.
        dropout: probability of dropping an activation in training mode (x052 and x060 only).
        adapter: what fine-tuning left, merged into the weights: an adapter's folder, or a .pth
            file of tuned states.

    Returns:
        The model in evaluation mode; ``model.train()`` before training it. Its parameters require
        gradients: what only predicts runs under ``torch.no_grad()``, as :func:`rwkvkit.generate`
        does by itself.

    Raises:
        DataError: the file cannot be read, or is no checkpoint of a supported RWKV model.
        UsageError: dropout for x070, or out of range.
        SetupError: an adapter, and peft is not installed.
    """
    if isinstance(path_or_state_dict, Mapping):
        state_dict, where = path_or_state_dict, None
    else:
        path = Path(path_or_state_dict)
        state_dict, where = read_checkpoint(path), str(path)
    if adapter is not None:
        from rwkvkit.model.adapter import merged

        state_dict = merged(state_dict, Path(adapter), where)
    config = config_from_state_dict(state_dict, where)
    if dropout:
        try:
            config = ModelConfig(**{**config.model_dump(), "dropout": dropout})
        except ValidationError as error:
            raise UsageError(
                reasons(error), where="load_model(dropout=...)", hint="leave dropout out"
            ) from error
    return build_model(config, state_dict, dtype=dtype, device=device, where=where).eval()


def build_model(
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    grad_cp: GradCp = False,
    impl: Impl = "auto",
    where: str | None = None,
    copy: bool = True,
) -> RWKV:
    """Make a model of a given shape and fill it with the tensors of a checkpoint.

    Tuned states that the config asks for and the checkpoint lacks start at zero; those that it has
    and the config does not ask for are left out.

    Args:
        config: the model's shape.
        state_dict: tensors by name.
        dtype: of the weights and activations.
        device: where the model lives.
        grad_cp: compute activations again in the backward pass, see :class:`Block`.
        impl: which WKV operator, see :mod:`rwkvkit.ops`.
        where: the file the tensors come from, for messages.
        copy: False leaves the tensors where and as they are, such as in a mapped file; the model
            is then to be moved and converted by whoever trains it.

    Raises:
        DataError: a tensor is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        model = RWKV(config, grad_cp=grad_cp, impl=impl)
    check_fits(config, state_dict, where)
    tensors = {name: tensor.detach() for name, tensor in _wanted(config, state_dict).items()}
    if copy:
        tensors = {n: t.to(device=device, dtype=dtype, copy=True) for n, t in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    return model


def check_fits(
    config: ModelConfig, state_dict: Mapping[str, Tensor], where: str | None = None
) -> None:
    """Check that a model takes the tensors of a checkpoint.

    Raises:
        DataError: a tensor is missing, unknown, or of another shape.
    """
    if wrong := misfits(config, state_dict):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(
            f"the tensors do not fit an {config.arch} model: {'; '.join(wrong[:5])}{more}",
            where=where,
            hint="the config and the checkpoint must describe the same model",
        )


def misfits(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors of a model are missing, unknown, or of another shape."""
    with torch.device("meta"):
        wanted = RWKV(config).state_dict()
    given = _wanted(config, state_dict)
    return [
        *(f"{name} is missing" for name in wanted if name not in given),
        *(f"{name} is unknown" for name in given if name not in wanted),
        *(
            f"{name} is {list(tensor.shape)}, expected {list(wanted[name].shape)}"
            for name, tensor in given.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ),
    ]


def _wanted(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what the model does not use, and add zero for tuned states that are not there."""
    unused = _UNUSED if config.arch == "x070" else frozenset()
    given = {
        name: tensor
        for name, tensor in state_dict.items()
        if name not in unused and (config.time_state or not name.endswith(".att.time_state"))
    }
    if config.time_state:
        shape = (config.n_head, config.head_size, config.head_size)
        for layer in range(config.n_layer):
            given.setdefault(f"blocks.{layer}.att.time_state", torch.zeros(shape))
    return given


def check_config(
    given: Mapping[str, Any], state_dict: Mapping[str, Tensor], where: str | None = None
) -> ModelConfig:
    """Read a checkpoint's shape and compare it with what a recipe says about it.

    Args:
        given: fields of :class:`ModelConfig` that the recipe states; what it leaves out is the
            checkpoint's.
        state_dict: the checkpoint's tensors by name.
        where: the checkpoint's file, for the message.

    Returns:
        The checkpoint's shape.

    Raises:
        RecipeError: they differ; lists every difference.
        DataError: the tensors are no RWKV checkpoint.
    """
    found = config_from_state_dict(state_dict, where)
    differences = [
        f"{name} is {getattr(found, name)} in the checkpoint, {value} in the recipe"
        for name, value in given.items()
        if getattr(found, name) != value
    ]
    if differences:
        raise RecipeError(
            f"the checkpoint is another model than the recipe's: {'; '.join(differences)}",
            where=where,
            hint="correct the recipe's model, or leave its sizes out (--set model.size=null) to "
            "take the checkpoint's",
        )
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a flat dict of tensors from a .pth file, on the CPU and mapped into memory.

    Only tensors are unpickled, no code runs. A prefix that DeepSpeed puts before names is left out,
    as the reference trainer does.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), hint="give the path of a .pth checkpoint")
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except PermissionError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # torch raises a dozen kinds for damaged files
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise DataError(
            f"not a readable checkpoint ({type(error).__name__}: {reason})",
            where=str(path),
            hint="the file may be cut or damaged; fetch or write it again",
        ) from error
    if not isinstance(content, dict) or not content:
        kind = type(content).__name__ if content else f"{type(content).__name__} without anything"
        raise DataError(
            f"holds a {kind}, not a dict of tensors",
            where=str(path),
            hint="a checkpoint is a flat dict of tensors by name, as torch.save writes it",
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(
                f"holds {name!r}, a {type(tensor).__name__}, not only tensors by name",
                where=str(path),
                hint="a checkpoint is a flat dict of tensors, without optimizer states",
            )
    return {name.removeprefix(_WRAPPED): tensor.detach() for name, tensor in content.items()}


def write_checkpoint(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as a .pth file, whole or not at all.

    Args:
        state_dict: the tensors; on any device.
        path: the file; replaced if it exists.

    Raises:
        SetupError: the file cannot be written.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        tensors[name] = tensor if whole else tensor.clone()  # else the file holds the whole storage
    write_archive(tensors, path)


def write_archive(content: Any, path: Path) -> None:
    """Write what ``torch.save`` can hold, whole or not at all; the same content, the same bytes.

    Raises:
        SetupError: the file cannot be written.
    """
    try:
        # Into an open file: given a path, torch stores its name, here a random one, in the archive.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it could not be written whole"
        raise SetupError(
            f"cannot write the checkpoint: {reason}",
            where=str(path),
            hint="check the folder's permissions and the free space",
        ) from error
