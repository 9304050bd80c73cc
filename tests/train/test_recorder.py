"""Recorded passes give the bits of passes that run as they are; CUDA's part is stood in for."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from tape import TapeRecorder

from rwkvkit.errors import SetupError
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.model.loss import every_token
from rwkvkit.train import recorder as recorder_module
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import StepResult, TorchEngine
from rwkvkit.train.recorder import CudaRecorder, RecordedPasses

CONFIG = ModelConfig(arch="x070", n_layer=2, n_embd=32, head_size=16, vocab_size=40)
WEIGHTS = init_weights(CONFIG, 3)
WARM_UPS = 3


def engine_of(
    recorder: TapeRecorder | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    accumulate: int = 1,
    demanded: bool = False,
    lines: list[str] | None = None,
) -> TorchEngine:
    settings = TrainConfig(
        micro_bsz=2, accumulate_grad_batches=accumulate, lr_init=1e-3, lr_final=1e-3
    )
    recording = recorder and partial(
        RecordedPasses,
        recorder=recorder,
        device=torch.device("cpu"),
        report=([] if lines is None else lines).append,
        demanded=demanded,
    )
    model = build_model(CONFIG, WEIGHTS)
    return TorchEngine(model.train(), settings, dtype, recording=recording)


def batch_of(seed: int, size: int = 2, length: int = 12, extras: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(40, (size, length), generator=generator) for _ in range(2))
    if not extras:
        return Batch(x, y)
    mask, resets = (torch.rand(size, length, generator=generator) < p for p in (0.6, 0.2))
    return Batch(x, y, mask.byte(), resets)


def steps(engine: TorchEngine, batches: list[Batch]) -> list[StepResult]:
    """A schedule that changes, so that a rate kept in a recording would show."""
    return [
        engine.step(batch, lr=1e-3 / (1 + number), weight_decay=0.01)
        for number, batch in enumerate(batches)
    ]


def same(one: TorchEngine, other: TorchEngine) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    masters = zip(one._masters, other._masters, strict=True)
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and all(
        torch.equal(x, y) for x, y in masters
    )


@pytest.fixture
def nothing_waits() -> Iterator[None]:
    """As in passes that are recorded; here in all, so that they add up alike."""
    with every_token():
        yield


@pytest.mark.usefixtures("nothing_waits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("accumulate", "extras"), [(1, False), (2, True)])
def test_the_bits_are_those_of_passes_as_they_are(
    dtype: torch.dtype, accumulate: int, extras: bool
) -> None:
    recorder = TapeRecorder()
    recorded = engine_of(recorder, dtype=dtype, accumulate=accumulate)
    plain = engine_of(dtype=dtype, accumulate=accumulate)
    calls: list[int] = []
    recorded.model.register_forward_pre_hook(lambda *_: calls.append(1))
    batches = [batch_of(seed, 2 * accumulate, extras=extras) for seed in range(7)]
    assert steps(recorded, batches) == steps(plain, batches)
    assert same(recorded, plain)
    passes = 7 * accumulate
    assert (recorder.warm_ups, len(recorder.tapes)) == (WARM_UPS, 1)
    assert recorder.played == passes - WARM_UPS
    assert len(calls) == WARM_UPS + 1  # a repeated pass runs no Python of the model


def test_a_skipped_step_and_a_loaded_one_leave_no_trace(tmp_path: Path) -> None:
    recorder = TapeRecorder()
    engines = [engine_of(recorder, dtype=torch.bfloat16), engine_of(dtype=torch.bfloat16)]
    found = []
    for number, engine in enumerate(engines):
        steps(engine, [batch_of(seed) for seed in range(4)])
        engine.save(tmp_path / str(number))
        weight = engine.model.ln_out.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(torch.nan)
        (skipped,) = steps(engine, [batch_of(4)])
        assert skipped.skipped
        with torch.no_grad():
            weight.copy_(kept)
        later = steps(engine, [batch_of(5), batch_of(6)])
        engine.load(tmp_path / str(number))
        found.append(later + steps(engine, [batch_of(7)]))
    assert found[0] == found[1]
    assert same(*engines)
    assert recorder.played == 5


def test_two_shapes_are_recorded_and_more_run_as_they_are() -> None:
    recorder = TapeRecorder()
    recorded, plain = engine_of(recorder), engine_of()
    batches = [batch_of(seed, length=8 + seed % 3) for seed in range(15)]
    assert steps(recorded, batches) == steps(plain, batches)
    assert len(recorder.tapes) == 2
    assert recorder.played == 2 * (5 - WARM_UPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_what_cannot_be_recorded_runs_as_it_is(dtype: torch.dtype, share: float) -> None:
    """Wherever in a pass it fails, in the backward pass too."""
    whole = TapeRecorder()
    steps(engine_of(whole, dtype=dtype), [batch_of(seed) for seed in range(4)])
    lines: list[str] = []
    recorder = TapeRecorder(fails_at=int(share * len(whole.tapes[0].steps)))
    recorded = engine_of(recorder, dtype=dtype, accumulate=2, lines=lines)
    plain = engine_of(dtype=dtype, accumulate=2)
    batches = [batch_of(seed, 4) for seed in range(4)]
    assert steps(recorded, batches) == steps(plain, batches)
    assert same(recorded, plain)
    assert recorder.warm_ups == 8
    assert len(lines) == 1
    assert lines[0].startswith("cuda graphs off: a pass cannot be recorded (RuntimeError: ")


def test_a_mask_is_no_obstacle() -> None:
    """Its tokens are not counted, which would wait for the device and cannot be recorded."""
    lines: list[str] = []
    recorded, plain = engine_of(TapeRecorder(), lines=lines), engine_of()
    batches = [batch_of(seed, extras=True) for seed in range(5)]
    ours, theirs = (
        torch.tensor([step.loss for step in steps(engine, batches)]) for engine in (recorded, plain)
    )
    torch.testing.assert_close(ours, theirs)
    assert lines == []


def test_waiting_for_the_device_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "every_token", nullcontext)
    lines: list[str] = []
    recorded, plain = engine_of(TapeRecorder(), lines=lines), engine_of()
    batches = [batch_of(seed, extras=True) for seed in range(5)]
    assert steps(recorded, batches) == steps(plain, batches)
    assert "nonzero" in lines[0]


def test_a_demand_that_fails_is_an_error() -> None:
    engine = engine_of(TapeRecorder(fails_at=0), demanded=True)
    with pytest.raises(SetupError, match="a pass cannot be recorded") as caught:
        steps(engine, [batch_of(seed) for seed in range(4)])
    assert "set train.cuda_graphs to false" in str(caught.value)


def test_cuda_records_on_the_stream_that_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "side" if isinstance(name, torch.device) else name
            self.device = torch.device("cuda")

        def wait_stream(self, other: "Stream") -> None:
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def entered(what: str, stream: Stream):
        events.append(f"{what} on {stream.name}")
        yield
        events.append("end")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered("run", stream))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: entered("capture", stream))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    recorder = CudaRecorder(torch.device("cuda"))
    recorder.warm_up(lambda: events.append("work"))
    recorder.record(lambda: events.append("work"))()
    assert events == [
        *("side waits for main", "run on side", "work", "end", "main waits for side"),
        *("capture on side", "work", "end", "replay"),
    ]
