"""Models and checkpoints in words."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from rwkvkit.model.checkpoint import misfits, read_checkpoint
from rwkvkit.model.config import ModelConfig, config_from_state_dict
from rwkvkit.model.init import weight_shapes


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
    return {
        "path": str(path),
        "model": config.model_dump(),
        "summary": summary(config),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "bytes": path.stat().st_size,
        "dtypes": dict(Counter(row["dtype"] for row in rows)),
        "problems": [
            *(
                f"{row['name']} holds values that are not finite"
                for row in rows
                if not row["finite"]
            ),
            *misfits(config, weights),
        ],
        "tensors": rows,
    }
