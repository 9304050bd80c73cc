"""The loss on held-out data: its value, that nothing else changes, best weights, the early end."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvkit import BinidxWriter, lm_loss, load_model, open_binidx
from rwkvkit.errors import DataError
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.documents import PackedSamples
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.group import Solo
from rwkvkit.train.held_out import Evaluation, HeldOut, held_out_loss
from rwkvkit.train.observe import END_EARLY
from rwkvkit.train.orders import validation_samples
from rwkvkit.train.sampling import SamplingConfig

VOCAB, CTX = 40, 12


def held_out(folder: Path, order: str, *, masked: bool = True) -> PackedSamples:
    rng = np.random.default_rng(0)
    with BinidxWriter(folder / "val", masked=masked) as writer:
        for size in (4, 13, 7, 30, 5, 9, 3, 18, 6):
            mask = rng.integers(0, 2, size) if masked else None
            writer.add(rng.integers(1, VOCAB, size), mask)
    return validation_samples(
        order,
        SamplingConfig(order=order),
        open_binidx(folder / "val"),
        ctx_len=CTX,
        vocab_size=VOCAB,
        seed=0,
    )


def engine() -> TorchEngine:
    shape = {"n_layer": 2, "n_embd": 32, "head_size": 16, "vocab_size": VOCAB}
    config = ModelConfig(arch="x060", dropout=0.3, **shape)
    model = build_model(config, init_weights(config, 3))
    return TorchEngine(model.train(), TrainConfig(micro_bsz=2, lr_init=1e-3, lr_final=1e-3))


@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_is_that_of_the_documents_alone(tmp_path, masked) -> None:
    samples = held_out(tmp_path, "infctx", masked=masked)
    model = engine().model.eval()
    total = counted = 0.0
    data = open_binidx(tmp_path / "val")
    for i, tokens in enumerate(data):
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        start = int(data.sizes[:i].sum())
        mask = torch.from_numpy(data.mask(start + 1, len(tokens) - 1).copy())[None]
        loss = lm_loss(model(ids[:, :-1]), ids[:, 1:], mask)
        total += loss.item() * mask.sum().item()
        counted += mask.sum().item()
    for micro_bsz in (1, 2, 5, 100):
        found = held_out_loss(model, samples, micro_bsz=micro_bsz, max_samples=1000)
        assert found.loss == pytest.approx(total / counted, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(total / counted), rel=1e-4)
        assert (found.targets, found.samples) == (counted, len(samples.rows))


def test_it_measures_in_evaluation_mode_and_changes_nothing(tmp_path) -> None:
    samples = held_out(tmp_path, "packed")
    ours = engine()
    torch.manual_seed(7)
    weights = {name: tensor.clone() for name, tensor in ours.model.state_dict().items()}
    random = torch.get_rng_state()
    losses = [
        held_out_loss(ours.model, samples, micro_bsz=2, max_samples=1000).loss for _ in range(2)
    ]
    assert losses[0] == losses[1]  # dropout would differ
    assert torch.equal(torch.get_rng_state(), random)
    assert ours.model.training
    assert all(torch.equal(t, weights[name]) for name, t in ours.model.state_dict().items())
    assert all(parameter.grad is None for parameter in ours.model.parameters())


def test_samples_of_which_no_token_counts(tmp_path) -> None:
    with BinidxWriter(tmp_path / "val", masked=True) as writer:
        for number in range(4):
            writer.add(np.arange(1, CTX + 2), np.full(CTX + 1, number == 0))
    sampling, data = SamplingConfig(order="packed"), open_binidx(tmp_path / "val")
    samples = validation_samples("packed", sampling, data, ctx_len=CTX, vocab_size=VOCAB, seed=0)
    first = next(n for n in range(1, 5) if samples.read(n, 1).counted)
    model = engine().model
    more = {"micro_bsz": 2, "max_samples": first - 1}
    assert first > 1
    with pytest.raises(DataError, match=f"no token of the first {first - 1} of 4") as caught:
        held_out_loss(model, samples, **more)
    assert "--max-samples" in caught.value.hint
    rest = {"every": 1, "steps": 1, "patience": None, "metrics": tmp_path, "best": tmp_path}
    with pytest.raises(DataError, match="no token of the first"):  # before the first step
        Evaluation(samples, **more, **rest, group=Solo(), report=print)
    assert held_out_loss(model, samples, micro_bsz=2, max_samples=first).targets == CTX


class Several(Solo):
    """One of two processes; what it sums is kept."""

    world = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.summed: list[float] = []

    def sum(self, value: float) -> float:
        self.summed.append(value)
        return value


@pytest.mark.parametrize("max_samples", [1, 2, 5, 1000])
def test_processes_share_the_samples(tmp_path, max_samples) -> None:
    samples = held_out(tmp_path, "packed")
    model = engine().model
    whole = held_out_loss(model, samples, micro_bsz=3, max_samples=max_samples)
    passes: list[int] = []
    model.register_forward_hook(lambda *args: passes.append(1))
    groups, made = [Several(0), Several(1)], []
    for group in groups:
        passes.clear()
        held_out_loss(model, samples, micro_bsz=3, max_samples=max_samples, group=group)
        made.append(len(passes))
    assert made[0] == made[1]  # or collectives inside the model would wait for ever
    total, counted = (sum(group.summed[i] for group in groups) for i in (0, 1))
    assert total / counted == pytest.approx(whole.loss, rel=1e-5)
    assert counted == whole.targets


class Scripted:
    """An evaluation whose losses are given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, patience: int) -> None:
        self.said: list[str] = []
        self.engine = engine()
        self.loss = 0.0
        monkeypatch.setattr(
            "rwkvkit.train.held_out.held_out_loss", lambda *args, **more: HeldOut(self.loss, 1, 1)
        )
        self.probe = Evaluation(
            held_out(folder, "packed"),
            every=10,
            steps=95,
            micro_bsz=2,
            max_samples=10,
            patience=patience,
            metrics=folder / "metrics.jsonl",
            best=folder / "best.pth",
            group=Solo(),
            report=self.said.append,
        )

    def __call__(self, step: int, loss: float) -> dict:
        self.loss = loss
        return dict(self.probe(step, self.engine))


def test_the_best_is_kept_and_patience_ends_the_run(tmp_path, monkeypatch) -> None:
    run = Scripted(tmp_path, monkeypatch, patience=2)
    assert run(5, 9.0) == {}
    assert run(10, 3.0)["val_loss"] == 3.0
    first = (tmp_path / "best.pth").read_bytes()
    with torch.no_grad():
        run.engine.model.emb.weight += 1
    assert END_EARLY not in run(20, 3.5)
    assert (tmp_path / "best.pth").read_bytes() == first
    assert END_EARLY not in run(30, 2.5)
    assert (tmp_path / "best.pth").read_bytes() != first
    assert torch.equal(load_model(tmp_path / "best.pth").emb.weight, run.engine.model.emb.weight)
    assert END_EARLY not in run(40, math.nan)
    reason = "2 evaluations without a smaller val_loss than 2.5000 of step 30"
    assert run(50, 2.5)[END_EARLY] == reason
    assert "the best is 2.5000 of step 30" in run.said[-2]
    assert reason in run.said[-1]
    assert "val_loss" in run(95, 4.0)  # after the last step, whatever the spacing


def test_a_resumed_run_remembers(tmp_path, monkeypatch) -> None:
    rows = [
        {"step": step, "tokens": 1, "loss": 1.0, **({"val_loss": loss} if loss else {})}
        for step, loss in ((10, 3.0), (15, None), (20, 2.0), (30, 2.2), (40, 1.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Scripted(tmp_path, monkeypatch, patience=2)
    assert "than 2.0000 of step 20" in run(40, 2.1)[END_EARLY]
    assert not (tmp_path / "best.pth").exists()
