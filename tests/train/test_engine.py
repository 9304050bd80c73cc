"""The engine's steps: the reference's losses, masters in bf16, accumulation, exact state."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkvkit import load_model
from rwkvkit.errors import DataError, DivergedError
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine

GOLDEN = Path(__file__).parents[1] / "golden/models"


def settings(**more: object) -> TrainConfig:
    return TrainConfig(**{"micro_bsz": 4, "lr_init": 1e-3, "lr_final": 1e-3, **more})


def engine_of(
    dtype: torch.dtype = torch.float32, dropout: float = 0.0, **more: object
) -> TorchEngine:
    config = ModelConfig(
        arch="x060", n_layer=2, n_embd=32, head_size=16, vocab_size=40, dropout=dropout
    )
    model = build_model(config, init_weights(config, 3))
    return TorchEngine(model.train(), settings(**more), dtype)


def batch(seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(40, (size, 24), generator=generator) for _ in range(2))
    return x, y


def step(engine: TorchEngine, seed: int, lr: float = 1e-3) -> float:
    return engine.step(Batch(*batch(seed)), lr=lr, weight_decay=0.01).loss


@pytest.mark.parametrize("name", ["x052", "x060", "x070"])
def test_the_losses_of_the_reference(name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as recorded:
        weights = {
            key.removeprefix("weight/"): torch.from_numpy(recorded[key]).float()
            for key in recorded.files
            if key.startswith("weight/")
        }
        x, y = (torch.from_numpy(recorded[key]).long() for key in ("idx", "targets"))
        trajectory = recorded["trajectory"].tolist()
        optimizer = json.loads(recorded["meta"].tobytes())["optimizer"]
    config = settings(
        micro_bsz=len(x),
        beta1=optimizer["betas"][0],
        beta2=optimizer["betas"][1],
        adam_eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        grad_clip=optimizer["grad_clip"],
    )
    engine = TorchEngine(load_model(weights), config)
    losses = [
        engine.step(Batch(x, y), lr=optimizer["lr"], weight_decay=optimizer["weight_decay"]).loss
        for _ in trajectory
    ]
    assert losses == pytest.approx(trajectory, rel=1e-5)


def test_an_update_by_hand() -> None:
    """Betas, epsilon, clipping, decoupled decay and both rates, all far from their defaults."""
    engine = engine_of(beta1=0.6, beta2=0.8, adam_eps=1e-3, grad_clip=0.02, weight_decay=0.1)
    other = engine_of().model
    with torch.no_grad():
        torch.manual_seed(0)
        for p in engine.model.parameters():  # of new weights, half have no gradient
            p.add_(0.15 * torch.randn_like(p))
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in weights.items()}
    second = {name: torch.zeros_like(p) for name, p in weights.items()}
    for t, (lr, decay) in enumerate([(1e-2, 0.1), (2e-2, 0.3), (5e-3, 0.2)], 1):
        x, y = batch(t)
        engine.step(Batch(x, y), lr=lr, weight_decay=decay)
        other.load_state_dict(weights)
        other.zero_grad()
        other.loss(x, y).backward()
        grads = {name: p.grad for name, p in other.named_parameters()}
        norm = sum(g.square().sum() for g in grads.values()).sqrt()
        assert norm > 0.04, "clipped"
        for name, weight in weights.items():
            g = grads[name] * 0.02 / norm
            rate = 2 * lr if name.endswith("time_decay") else lr
            if weight.dim() == 2 and name.endswith(".weight"):
                weight.mul_(1 - rate * decay)
            first[name].mul_(0.6).add_(0.4 * g)
            second[name].mul_(0.8).add_(0.2 * g.square())
            m, v = first[name] / (1 - 0.6**t), second[name] / (1 - 0.8**t)
            weight.sub_(rate * m / (v.sqrt() + 1e-3))
    for name, weight in engine.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-7, msg=name)


def test_accumulated_passes_are_one_step() -> None:
    whole, parts = engine_of(), engine_of(micro_bsz=1, accumulate_grad_batches=4)
    for seed in range(3):
        assert step(parts, seed) == pytest.approx(step(whole, seed), rel=1e-5)
    ours, theirs = whole.model.state_dict(), parts.model.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_mask_counts_targets_however_they_are_spread() -> None:
    x, y = batch(0)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3).byte()
    mask[2] = 0  # a sample without any target that counts
    whole, parts = engine_of(), engine_of(micro_bsz=1, accumulate_grad_batches=4)
    ours = whole.step(Batch(x, y, mask), lr=1e-3, weight_decay=0.0)
    theirs = parts.step(Batch(x, y, mask), lr=1e-3, weight_decay=0.0)
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)
    assert theirs.grad_norm == pytest.approx(ours.grad_norm, rel=1e-4)
    other = y.masked_fill(mask == 0, 7)  # targets that do not count change nothing
    assert engine_of().step(Batch(x, other, mask), lr=1e-3, weight_decay=0.0) == ours
    assert engine_of().step(Batch(x, y), lr=1e-3, weight_decay=0.0).loss != ours.loss


def test_masters_keep_what_bf16_would_round_away() -> None:
    engine = engine_of(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    name = "blocks.0.att.receptance.weight"
    for _ in range(40):  # each step moves a weight by a fraction of its last bf16 digit
        step(engine, 0, lr=2e-5)
    after = engine.model.state_dict()
    assert after[name].dtype == torch.bfloat16
    moved = (after[name].float() - before[name].float()).abs().mean().item()
    assert 1e-4 < moved < 40 * 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_continues_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    engine = engine_of(dtype, dropout=0.2)
    for seed in range(3):
        step(engine, seed)
    engine.save(tmp_path)
    onward = [step(engine, seed) for seed in (3, 4)]
    torch.manual_seed(99)
    other = engine_of(dtype, dropout=0.2)
    other.load(tmp_path)
    assert [step(other, seed) for seed in (3, 4)] == onward
    ours, theirs = engine.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    engine_of().save(tmp_path)
    config = ModelConfig(arch="x070", n_layer=2, n_embd=32, head_size=16, vocab_size=40)
    other = TorchEngine(build_model(config, init_weights(config, 3)), settings())
    with pytest.raises(DataError, match="another model") as caught:
        other.load(tmp_path)
    assert caught.value.where == str(tmp_path / "model.pth")
    assert "run_dir" in caught.value.hint


def test_masters_start_from_the_weights_as_they_are(tmp_path: Path) -> None:
    engine = engine_of(torch.bfloat16)
    engine.save(tmp_path)
    parameters = torch.load(tmp_path / "optimizer.pt", weights_only=True)["parameters"]
    config = engine.model.config
    weights = init_weights(config, 3)
    assert all(torch.equal(parameters[name]["master"], tensor) for name, tensor in weights.items())
    assert engine.model.emb.weight.dtype == torch.bfloat16


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    engine = engine_of()
    step(engine, 0, lr=1e38)
    with pytest.raises(DivergedError, match="not finite"):
        engine.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        engine = engine_of()
        step(engine, 0)
        engine.save(tmp_path / name)
    for file in ("model.pth", "optimizer.pt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weight_decay_reaches_the_matrices_only() -> None:
    engine = engine_of(weight_decay=0.1)
    engine.model.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    x, y = batch(0)
    engine.step(Batch(x, y), lr=0.0, weight_decay=0.5)  # lr scales decay too: nothing may move
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    engine.step(Batch(x, y), lr=1e-3, weight_decay=1000.0)  # 1 - lr · wd = 0
    assert engine.model.state_dict()["blocks.0.att.key.weight"].abs().max() < 0.01
    assert engine.model.state_dict()["blocks.0.ln1.weight"].mean() > 0.9


def test_a_loss_that_is_not_finite_leaves_the_weights(tmp_path: Path) -> None:
    engine = engine_of()
    step(engine, 0)
    bias = engine.model.ln_out.bias
    good = bias.detach().clone()
    with torch.no_grad():
        bias[0] = torch.inf
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    moments = engine._optimizer.state_dict()["state"][0]
    moments = {name: value.clone() for name, value in moments.items()}
    result = engine.step(Batch(*batch(1)), lr=1e-3, weight_decay=0.01)
    assert result.skipped
    assert math.isnan(result.loss)
    after = engine._optimizer.state_dict()["state"][0]
    assert all(torch.equal(value, after[name]) for name, value in moments.items())
    after = engine.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with torch.no_grad():
        bias.copy_(good)
    other = engine_of()
    step(other, 0)
    # The loss of a step is from before its update: the second tells whether the first went wrong.
    assert [step(engine, seed) for seed in (2, 3)] == [step(other, seed) for seed in (2, 3)]
