"""What decides the weights a run ends with; a resume compares it."""

import hashlib
from typing import Any

from rwkvkit import files
from rwkvkit.data.binidx import Binidx, bin_path, idx_path, mask_path
from rwkvkit.recipe.schema import ModelSpec, Recipe
from rwkvkit.train.config import TrainConfig

_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 20

_FREE = {
    *(
        "device",
        "wkv",
        "elementwise",
        "grad_cp",
        "compile",
        "cuda_graphs",
        "precision",
        "engine",
        "zero",
        "offload",
        "deepspeed",
    ),
    *("save_every", "resume", "keep", "trackers", "tracker_project", "profile", "evaluate"),
}
"""Keys of ``train`` that may change from one start of a run to the next."""


def recipe_record(
    recipe: Recipe, model: ModelSpec, settings: TrainConfig, processes: int
) -> dict[str, Any]:
    """Return what of a recipe decides the result.

    Args:
        recipe: the recipe.
        model: its model, as the initial weights take it.
        settings: its ``train`` section.
        processes: how many train together; only the product with the split of the batch counts.
    """
    varied = _FREE | {"micro_bsz", "accumulate_grad_batches"}
    if settings.guards.on_spike == "rollback":  # which weights it takes depends on the saves
        varied = varied - {"save_every"}
    return {
        "seed": recipe.seed,
        "ctx_len": recipe.ctx_len,
        "prepare": {stage.key: stage.model_dump(mode="json") for stage in recipe.prepare or []},
        "data": recipe.data,
        "model": model.model_dump(exclude_none=True),
        "train": settings.model_dump(exclude=varied)
        | {"global_batch": settings.global_batch(processes)},
    }


def data_record(data: Binidx) -> dict[str, Any]:
    """Return the size of a dataset, and a hash that is cheap at any size.

    The hash is of the index and of blocks spread evenly over the tokens and the mask.
    """
    digest = hashlib.sha256(files.sha256(idx_path(data.prefix)).encode())
    for path in (bin_path(data.prefix), mask_path(data.prefix)):
        if path.exists():
            size = path.stat().st_size
            with path.open("rb") as file:
                for block in range(_SAMPLED_BLOCKS):
                    file.seek(max(0, size - _BLOCK_BYTES) * block // (_SAMPLED_BLOCKS - 1))
                    digest.update(file.read(_BLOCK_BYTES))
    return {"n_tokens": data.n_tokens, "sha256": digest.hexdigest()}
