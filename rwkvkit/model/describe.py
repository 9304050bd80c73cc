"""Models and checkpoints in words."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rwkvkit.files import read_json
from rwkvkit.model.adapter import WEIGHTS, WHOLE, read_adapter, record_path
from rwkvkit.model.checkpoint import misfits, read_checkpoint
from rwkvkit.model.config import ModelConfig, config_from_state_dict
from rwkvkit.model.init import weight_shapes

_NAMES = {"LORA": "LoRA", "MISS": "MiSS"}  # as people write what peft calls so


def n_parameters(config: ModelConfig) -> int:
    """Return the number of weights of a model."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def summary(config: ModelConfig) -> str:
    """Return a model's shape in a line."""
    return (
        f"{config.arch} n_layer {config.n_layer} n_embd {config.n_embd} "
        f"vocab_size {config.vocab_size}: {n_parameters(config):,} parameters"
    )


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Return architecture, sizes, dtypes and a row for each tensor of a checkpoint.

    Args:
        path: a .pth file.

    Returns:
        ``model`` (the config's fields), ``summary``, ``parameters``, ``bytes`` (of the file),
        ``dtypes`` (tensors of each), ``problems`` (in words) and ``tensors``: dicts of ``name``,
        ``shape``, ``dtype``, ``mean``, ``std``, ``finite``.

    Raises:
        DataError: the file is no checkpoint of a supported model.
    """
    weights = read_checkpoint(path)
    config = config_from_state_dict(weights, str(path))
    rows = _rows(weights)
    return {
        "path": str(path),
        "model": config.model_dump(),
        "summary": summary(config),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "bytes": path.stat().st_size,
        "dtypes": dict(Counter(row["dtype"] for row in rows)),
        "problems": [*_not_finite(rows), *misfits(config, weights)],
        "tensors": rows,
    }


def describe_tuned(path: Path) -> dict[str, Any]:
    """Return what fine-tuning left: the same facts, with ``base`` instead of ``model``.

    Args:
        path: an adapter's folder, or a .pth file of tuned states.

    Raises:
        DataError: it is damaged, or something else.
        SetupError: an adapter, and peft is not installed.
    """
    if path.is_dir():
        config, tensors, whole = read_adapter(path)
        weights = tensors | whole
        files = [path / name for name in (WEIGHTS, WHOLE) if (path / name).exists()]
        name = "DoRA" if getattr(config, "use_dora", False) else config.peft_type.value
        kind = f"{_NAMES.get(name, name)}, rank {config.r}: "
    else:
        weights, files, kind = read_checkpoint(path), [path], ""
    rows = _rows(weights)
    count = sum(tensor.numel() for tensor in weights.values())
    record = record_path(path)
    return {
        "path": str(path),
        "base": read_json(record).get("base") if record.exists() else None,
        "summary": f"{kind}{count:,} parameters",
        "parameters": count,
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": dict(Counter(row["dtype"] for row in rows)),
        "problems": _not_finite(rows),
        "tensors": rows,
    }


def _rows(weights: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    rows = []
    for name, tensor in weights.items():
        values = tensor.float()
        rows.append(
            {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "mean": values.mean().item(),
                "std": values.std(correction=0).item(),
                "finite": bool(values.isfinite().all()),
            }
        )
    return rows


def _not_finite(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{row['name']} holds values that are not finite" for row in rows if not row["finite"]]
