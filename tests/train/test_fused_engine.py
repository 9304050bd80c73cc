"""Training with the elementwise operators gives what training in plain PyTorch gives."""

from typing import Any

import pytest
import torch

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.adapt import apply_tuning
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.tuning import TuningConfig

CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters": {"tuning": {"method": "lora", "rank": 4}},
    "adapters and some weights": {
        "tuning": {"method": "lora", "rank": 4, "train": ["att.x_r", "att.ln_x"]}
    },
    "states": {"tuning": {"method": "state"}},
    "frozen weights": {"tuning": {"freeze": ["emb", "blocks.0", "att.k_k", "ffn.x_k"]}},
    "computed again": {"grad_cp": True},
    "segments": {"segments": 2},
}


def losses(case: dict[str, Any], *, fused: bool) -> list[float]:
    torch.manual_seed(0)
    tuning = TuningConfig(**case.get("tuning", {}))
    shape = {"n_layer": 2, "n_embd": 64, "vocab_size": 40}
    model = ModelConfig(arch="x070", time_state=tuning.method == "state", **shape)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in init_weights(model, 1).items()
    }
    built = build_model(model, weights, grad_cp=case.get("grad_cp", False))
    portion = apply_tuning(built, tuning, {"path": "base.pth"}, dtype=torch.float32)
    if fused:
        built.fuse_elementwise()
    settings = TrainConfig(micro_bsz=2, lr_init=1e-2, lr_final=1e-2, tuning=tuning)
    engine = TorchEngine(built.train(), settings, torch.float32, portion)

    def batch(seed: int) -> Batch:
        drawn = torch.Generator().manual_seed(seed)
        ids = torch.randint(40, (2, 17), generator=drawn)
        starts = torch.rand(2, 16, generator=drawn) < 0.1
        segments = case.get("segments", 1)
        resets = None if segments > 1 else starts
        return Batch(ids[:, :-1], ids[:, 1:], resets=resets, segments=segments)

    return [engine.step(batch(seed), lr=1e-2, weight_decay=0.01).loss for seed in range(6)]


@pytest.mark.parametrize("name", CASES)
def test_the_same_losses(name: str) -> None:
    found = losses(CASES[name], fused=True)
    assert found == pytest.approx(losses(CASES[name], fused=False), rel=1e-4)
    assert len(set(found)) == 6
