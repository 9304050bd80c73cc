"""Small models whose every tensor matters, and the golden files."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.model.rwkv import RWKV

ARCHS = ("x052", "x060", "x070")
VOCAB = 50
GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def small_config(arch: str, **settings: Any) -> ModelConfig:
    shape = {"n_layer": 2, "n_embd": 32, "head_size": 16, "vocab_size": VOCAB}
    return ModelConfig(**{"arch": arch, **shape, **settings})


def noisy_weights(config: ModelConfig, seed: int = 1) -> dict[str, Tensor]:
    """Initial weights with noise, so that no tensor is zero or one and none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.15 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in init_weights(config, seed).items()
    }


def small_model(arch: str, *, dtype: torch.dtype = torch.float64, **settings: Any) -> RWKV:
    build = {name: settings.pop(name) for name in ("impl", "grad_cp") if name in settings}
    config = small_config(arch, **settings)
    return build_model(config, noisy_weights(config), dtype=dtype, **build)


def tokens(batch: int, length: int, seed: int = 3, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


class Golden(NamedTuple):
    weights: dict[str, Tensor]
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    idx: Tensor
    targets: Tensor


def load_golden(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    return Golden(
        weights={
            key.partition("/")[2]: torch.from_numpy(value).float()
            for key, value in arrays.items()
            if key.startswith("weight/")
        },
        arrays=arrays,
        meta=json.loads(arrays["meta"].tobytes()),
        idx=torch.from_numpy(arrays["idx"]).long(),
        targets=torch.from_numpy(arrays["targets"]).long(),
    )
