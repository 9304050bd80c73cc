"""Gradients that are not finite, loss spikes, and samples read ahead: exact over resumes."""

import math
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from rwkvkit.errors import DataError, DivergedError, InterruptedRun
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.flops import train_flops
from rwkvkit.model.init import init_weights
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import card_of
from rwkvkit.train.engine import StepResult, TorchEngine
from rwkvkit.train.loop import train
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.observe import MACHINE, StepReport
from rwkvkit.train.plan import plan_training
from rwkvkit.train.prefetch import Prefetch
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.smoothing import SmoothedLoss

VOCAB, CTX, BATCH = 40, 8, 2
POISON, SHOCK = VOCAB - 1, VOCAB - 2


@dataclass
class Samples:
    """Random tokens; the first token of a step's first sample marks the steps that go wrong."""

    poisoned: frozenset[int] = frozenset()
    shocking: frozenset[int] = frozenset()
    reads: list[tuple[int, int]] = field(default_factory=list)
    once: int = 10_000
    sample_tokens: int = CTX
    lines: tuple[str, ...] = ()

    def tokens(self, count: int) -> int:
        return count * CTX

    def read(self, start: int, count: int) -> Batch:
        self.reads.append((start, count))
        generator = torch.Generator().manual_seed(start)
        tokens = torch.randint(VOCAB - 2, (count, CTX + 1), generator=generator)
        step = 1 + (start - 1) // BATCH
        tokens[0, 0] = POISON if step in self.poisoned else SHOCK if step in self.shocking else 0
        return Batch(tokens[:, :-1], tokens[:, 1:])


class HarmedEngine(TorchEngine):
    """Gets real NaN gradients, and losses that jump, from marked batches."""

    def step(self, batch: Batch, *, lr: float, weight_decay: float) -> StepResult:
        mark = batch.x[0, 0].item()
        if mark == POISON:
            weight = self.model.blocks[0].att.output.weight
            hook = weight.register_hook(lambda gradient: gradient * math.nan)
            try:
                return super().step(batch, lr=lr, weight_decay=weight_decay)
            finally:
                hook.remove()
        if mark == SHOCK:
            with torch.no_grad():
                self.model.head.weight.normal_(std=5.0, generator=torch.Generator().manual_seed(1))
        return super().step(batch, lr=lr, weight_decay=weight_decay)


def run(
    folder: Path,
    samples: Samples,
    *,
    stop_after: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    sink: Callable[[StepReport], None] = lambda now: None,
    utilisation: float | None = None,
    **settings: object,
) -> TorchEngine:
    """Train 40 steps, or raise InterruptedRun after some."""
    config = TrainConfig(
        **{
            "micro_bsz": BATCH,
            "lr_init": 1e-3,
            "lr_final": 1e-4,
            "total_steps": 40,
            "save_every": 10,
            **settings,
        }
    )
    plan = plan_training(config, samples)
    model = ModelConfig(arch="x070", n_layer=1, n_embd=32, head_size=16, vocab_size=VOCAB)
    engine = HarmedEngine(build_model(model, init_weights(model, 3)).train(), config)

    def interrupt(now: object) -> None:
        if now.step == stop_after:
            raise InterruptedRun("killed")

    train(
        engine,
        samples,
        plan,
        RunFiles(folder),
        report=report,
        sinks=[sink, interrupt],
        utilisation=utilisation,
    )
    return engine


def rows(folder: Path) -> list[dict]:
    found = read_metrics(folder / "metrics.jsonl")
    return [{name: row[name] for name in row if name not in MACHINE} for row in found]


def same(left: TorchEngine, right: TorchEngine) -> bool:
    ours, theirs = left.model.state_dict(), right.model.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_nan_gradients_are_skipped_counted_and_resumed(tmp_path: Path) -> None:
    bad = frozenset({7, 8, 20, 33})
    lines: list[str] = []
    whole = run(tmp_path / "whole", Samples(bad), report=lines.append)
    log = rows(tmp_path / "whole")
    assert [row["step"] for row in log if row["loss"] is None] == sorted(bad)
    assert [row["skipped"] for row in log][-1] == 4
    assert [row["loss_smooth"] for row in log if row["step"] in (6, 7, 8)] == [
        log[5]["loss_smooth"]
    ] * 3
    assert "step 7 skipped: loss 3.7" in lines[0]
    assert "gradient norm nan" in lines[0]
    # Step 20 gave no finite gradient: its checkpoint waits for the next one that does.
    assert {path.name for path in (tmp_path / "whole/checkpoints").iterdir()} == {
        "step-00000021",
        "step-00000030",
        "step-00000040",
    }
    for stop in (8, 34):  # a second process goes on from the checkpoint before
        folder = tmp_path / f"cut{stop}"
        with pytest.raises(InterruptedRun):
            run(folder, Samples(bad), stop_after=stop)
        assert same(run(folder, Samples(bad)), whole)
        assert rows(folder) == log
    # The skipped step leaves the weights, and nothing else of the run moves.
    clean = run(tmp_path / "clean", Samples())
    assert [row["lr"] for row in rows(tmp_path / "clean")] == [row["lr"] for row in log]
    assert not same(clean, whole)


def test_repeated_nan_gradients_stop_the_run(tmp_path: Path) -> None:
    bad = frozenset(range(13, 41))
    with pytest.raises(DivergedError, match="after 17 steps: 5 steps in a row") as caught:
        run(tmp_path, Samples(bad), guards={"max_skipped": 5})
    assert "step-00000010" in caught.value.what
    assert "lower train.lr_init" in caught.value.hint
    assert not (tmp_path / "rwkv-final.pth").exists()
    with pytest.raises(DivergedError, match="after 17 steps: 5 steps in a row"):
        run(tmp_path, Samples(bad), guards={"max_skipped": 5})
    with pytest.raises(DivergedError, match="after 3 steps"):  # shorter than the limit
        run(tmp_path / "short", Samples(frozenset({1, 2, 3})), total_steps=3)


def test_a_run_does_not_end_on_skipped_steps(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="after 40 steps: 2 steps in a row") as caught:
        run(tmp_path / "two", Samples(frozenset({39, 40})))
    assert "step-00000030" in caught.value.what
    assert not (tmp_path / "two/rwkv-final.pth").exists()
    run(tmp_path / "one", Samples(frozenset({40})))  # the weights are those of a good step
    assert (tmp_path / "one/rwkv-final.pth").exists()


def test_a_signal_waits_for_a_step_that_counts(tmp_path: Path) -> None:
    def ask(now: StepReport) -> None:
        if now.step == 13:
            signal.raise_signal(signal.SIGTERM)

    whole = run(tmp_path / "whole", Samples(frozenset({13, 14})))
    with pytest.raises(InterruptedRun, match="SIGTERM after step 15"):
        run(tmp_path / "cut", Samples(frozenset({13, 14})), sink=ask)
    names = {path.name for path in (tmp_path / "cut/checkpoints").iterdir()}
    assert names == {"step-00000010", "step-00000015"}
    assert same(run(tmp_path / "cut", Samples(frozenset({13, 14}))), whole)


def test_a_rollback_passes_over_the_checkpoint_of_a_signal(tmp_path: Path) -> None:
    def ask(now: StepReport) -> None:
        if now.step == 25:
            signal.raise_signal(signal.SIGTERM)

    settings = {"guards": {"on_spike": "rollback"}, "keep": 1}
    samples = Samples(shocking=frozenset({27}))
    whole = run(tmp_path / "whole", samples, **settings)
    with pytest.raises(InterruptedRun, match="after step 25"):
        run(tmp_path / "cut", samples, sink=ask, **settings)
    again = run(tmp_path / "cut", samples, **settings)
    assert rows(tmp_path / "cut")[26]["rolled_back_to"] == 20
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert same(again, whole)


def test_a_spike_is_flagged_or_rolled_back(tmp_path: Path) -> None:
    lines: list[str] = []
    run(tmp_path / "flag", Samples(shocking=frozenset({27})), report=lines.append)
    log = rows(tmp_path / "flag")
    assert log[26]["spike"] > 6
    assert "step 27: loss" in lines[0]
    assert "sigma above its mean" in lines[0]
    assert log[-1]["loss"] > 2 * log[0]["loss"]  # the harm stays

    settings = {"guards": {"on_spike": "rollback"}}
    whole = run(tmp_path / "back", Samples(shocking=frozenset({27})), **settings)
    log = rows(tmp_path / "back")
    assert [row["step"] for row in log if "rolled_back_to" in row] == [27]
    assert log[26]["rolled_back_to"] == 20
    assert log[-1]["loss"] < 1.2 * log[0]["loss"]
    assert log[-1]["tokens"] == 40 * BATCH * CTX
    for stop in (27, 34):
        folder = tmp_path / f"cut{stop}"
        with pytest.raises(InterruptedRun):
            run(folder, Samples(shocking=frozenset({27})), stop_after=stop, **settings)
        assert same(run(folder, Samples(shocking=frozenset({27})), **settings), whole)
        assert rows(folder) == log


def test_the_smoothed_loss_is_the_weighted_mean_of_what_came() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (3 + 0.1 * torch.randn(300, generator=generator, dtype=torch.float64)).tolist()
    smoothed = SmoothedLoss(6.0)
    spikes = [smoothed.add(loss) for loss in losses]
    weights = 0.98 ** torch.arange(299, -1, -1, dtype=torch.float64)
    expected = (weights * torch.tensor(losses, dtype=torch.float64)).sum() / weights.sum()
    assert smoothed.value == pytest.approx(expected.item(), rel=1e-9)
    assert spikes == [None] * 300
    assert smoothed.add(math.nan) is None
    assert smoothed.add(4.0) == pytest.approx(10, rel=0.3)
    assert smoothed.value == pytest.approx(expected.item(), abs=0.03)  # a spike moves it little
    assert SmoothedLoss(6.0).value is None


def test_the_next_samples_are_read_while_a_step_computes() -> None:
    @dataclass
    class Slow(Samples):
        begun: threading.Event = field(default_factory=threading.Event)

        def read(self, start: int, count: int) -> Batch:
            if start == 3:
                self.begun.set()
            if start == 5:
                raise DataError("token id 70")
            return super().read(start, count)

    samples = Slow()
    with Prefetch(samples, stride=2, end=6) as ready:
        assert torch.equal(ready.read(1, 2).x, Samples().read(1, 2).x)
        assert samples.begun.wait(20)  # nobody has asked for it yet
        assert torch.equal(ready.read(3, 2).x, Samples().read(3, 2).x)
        assert ready.waited_s >= 0
        with pytest.raises(DataError, match="token id 70"):
            ready.read(5, 2)
        assert torch.equal(ready.read(1, 2).x, Samples().read(1, 2).x)  # out of turn
    assert samples.reads[:3] == [(1, 2), (3, 2), (1, 2)]
    assert all(start <= 6 for start, _ in samples.reads)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samples")]


@pytest.mark.parametrize("arch", ["x052", "x060", "x070"])
def test_flops_are_two_for_each_product(arch: str) -> None:
    config = ModelConfig(arch=arch, n_layer=2, n_embd=64, head_size=16, vocab_size=96)
    model = build_model(config, init_weights(config, 0))
    counted = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal counted
        counted += 2 * module.weight.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 1, dtype=torch.long))
    ranks = {
        "x052": 0,
        "x060": 2 * 64 * (2 * config.d_decay_lora + 10 * config.d_mix_lora),
        "x070": 2 * 64 * 2 * (config.d_decay_lora + config.d_aaa_lora + config.d_gate_lora)
        + 2 * 64 * config.d_mv_lora,  # the second layer alone has it
    }[arch]
    wkv = {"x052": 6, "x060": 6, "x070": 9}[arch] * 2 * 64 * 16
    assert train_flops(config) == 3 * (counted + 2 * ranks + wkv)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_device(name: str, peak: float | None) -> None:
    card = card_of(name)
    assert (card and card.tflops * 1e12) == peak


def test_what_the_machine_does_is_told(tmp_path: Path) -> None:
    told: list[StepReport] = []
    run(tmp_path, Samples(), sink=told.append, total_steps=3, utilisation=1e-6)
    for now in told:
        assert now.mfu == pytest.approx(1e-6 * now.tokens_per_s)
        assert 0 < now.peak_memory_gb < 1000
        assert now.data_wait_s < 60
    assert told[-1].eta_s == 0
    assert told[0].eta_s == pytest.approx(2 * BATCH * CTX / told[0].tokens_per_s)
    assert set(read_metrics(tmp_path / "metrics.jsonl")[0]) >= MACHINE
