"""Small models that are fine-tuned, and what the tests ask of them."""

from typing import Any

import torch
from torch import Tensor

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.model.rwkv import GradCp
from rwkvkit.train.adapt import apply_tuning
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.tuning import TuningConfig

ARCHS = ("x052", "x060", "x070")
ADAPTERS = ("lora", "dora", "pissa", "miss")
BASE = {"path": "base.pth", "sha256": "0"}


def shape(arch: str, **more: Any) -> ModelConfig:
    return ModelConfig(arch=arch, n_layer=2, n_embd=32, head_size=16, vocab_size=40, **more)


def base_weights(arch: str) -> dict[str, Tensor]:
    """Initial weights with noise: no matrix is zero."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in init_weights(shape(arch), 1).items()
    }


def tuning(method: str = "full", **more: Any) -> TuningConfig:
    rank = {"rank": 4} if method in ADAPTERS else {}
    return TuningConfig(**{"method": method, **rank, **more})


def engine_of(
    arch: str,
    chosen: TuningConfig,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    grad_cp: GradCp = False,
) -> TorchEngine:
    torch.manual_seed(seed)
    config = shape(arch, time_state=chosen.method == "state")
    model = build_model(config, base_weights(arch), grad_cp=grad_cp)
    portion = apply_tuning(model, chosen, BASE, dtype=dtype)
    settings = TrainConfig(micro_bsz=2, lr_init=1e-2, lr_final=1e-2, tuning=chosen)
    return TorchEngine(model.train(), settings, dtype, portion)


def tokens(seed: int, batch: int = 4) -> tuple[Tensor, Tensor]:
    ids = torch.randint(40, (batch, 19), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def train(engine: TorchEngine, *seeds: int) -> list[float]:
    return [engine.step(Batch(*tokens(seed)), lr=1e-2, weight_decay=0.01).loss for seed in seeds]


def logits(engine: TorchEngine) -> Tensor:
    with torch.no_grad():
        return engine.model(tokens(9)[0])


def base_values(engine: TorchEngine) -> dict[str, Tensor]:
    """The base's own parameters, under the names of a checkpoint."""
    return {
        name.replace(".base_layer.", "."): tensor.clone()
        for name, tensor in engine.model.state_dict().items()
        if ".lora_" not in name and ".miss_" not in name
    }
