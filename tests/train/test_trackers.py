"""Trackers get each row once, over resumes; the log that the reference's users read."""

import json
import math
import re
import sys
import time
import types
import warnings
from pathlib import Path

import pytest

from rwkvkit.errors import SetupError
from rwkvkit.train.observe import StepReport
from rwkvkit.train.trackers import choose_trackers, open_trackers
from rwkvkit.train.train_log import TrainLog

ROOT = Path(__file__).parents[2]


def report(step: int, steps: int = 9, **more: object) -> StepReport:
    facts = {
        "step": step,
        "steps": steps,
        "tokens": step * 8,
        "loss": 4 / step,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "grad_norm": 1.0,
        "tokens_per_s": 8.0,
        "eta_s": 1.0,
        "loss_smooth": 5.0,
    }
    return StepReport(**(facts | more))


def send(name: str, folder: Path, steps: range, sent: int, notes: list[str] | None = None) -> None:
    settings = {"ctx_len": 4}
    tell = (notes if notes is not None else []).append
    with open_trackers(
        [name], folder, project="p", run="r", settings=settings, sent=sent, report=tell
    ) as sinks:
        for step in steps:
            found = {"val_loss": 1.5, "text": "no number"} if step == 3 else {}
            for sink in sinks:
                sink(report(step, loss=math.nan if step == 2 else 4 / step, found=found))


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    send("tensorboard", tmp_path, range(1, 6), sent=0)
    send("tensorboard", tmp_path, range(4, 8), sent=5)  # a resume takes steps 4 and 5 again
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 3, 4, 5, 6, 7]
    assert losses[1].value == pytest.approx(4 / 3)
    assert [(event.step, event.value) for event in events.Scalars("val_loss")] == [(3, 1.5)]
    assert {"loss", "loss_smooth", "lr", "grad_norm", "tokens_per_s"} <= set(
        events.Tags()["scalars"]
    )


def test_wandb_offline_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():  # wandb's own
        warnings.simplefilter("ignore")
        send("wandb", tmp_path, range(1, 4), sent=0)
    [name] = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] in name
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    end = time.monotonic() + 60
    while b"loss_smooth" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)  # wandb's own process writes the file, also after finish() came back
    content = file.read_bytes()
    assert content.count(b"loss_smooth") >= 3
    assert b"ctx_len" in content


class Session:
    """Records what a tracker is told, in place of its package."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.rows: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **facts: object) -> "Session":
        self.inits.append(facts)
        return self

    def log(self, metrics: dict, step: int) -> None:
        self.rows.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_is_the_same_run_to_a_tracker(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    package = types.ModuleType(name)
    package.init, package.finish = session.init, session.finish
    monkeypatch.setitem(sys.modules, name, package)
    send(name, tmp_path, range(1, 6), sent=0)
    send(name, tmp_path, range(4, 8), sent=5)
    assert [step for step, _ in session.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert session.rows[2][1]["val_loss"] == 1.5
    assert all(isinstance(value, float | int) for _, row in session.rows for value in row.values())
    assert session.finished == 2
    first, second = session.inits
    assert first == second
    assert first["resume"] == "allow"
    assert first["project"] == "p"
    assert first["config"] == {"ctx_len": 4}
    send(name, tmp_path / "other", range(1, 2), sent=0)
    key = "id" if name == "wandb" else "name"
    assert session.inits[2][key] != first[key]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start it ends the run with what to do; later the run goes on without it."""
    session = Session()
    package = types.ModuleType(name)
    package.init, package.finish = session.init, session.finish
    monkeypatch.setitem(sys.modules, name, package)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no such host\nand more")

    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(package, "init", fail)
        with pytest.raises(SetupError, match=f"{name} does not start: no such host\n") as caught:
            send(name, tmp_path, range(1, 3), sent=0, notes=notes)
        assert f"or leave {name} out" in caught.value.hint
        assert ("WANDB_MODE=offline" in caught.value.hint) == (name == "wandb")
    with monkeypatch.context() as patch:
        patch.setattr(session, "finish", fail)
        patch.setattr(package, "finish", fail)
        send(name, tmp_path, range(1, 3), sent=0, notes=notes)
    assert [step for step, _ in session.rows] == [1, 2]
    monkeypatch.setattr(session, "log", fail)
    send(name, tmp_path, range(3, 6), sent=2, notes=notes)
    assert notes == [
        f"{name} may lack the last rows, the run goes on: no such host",
        f"{name} gets no rows from step 3 on, the run goes on: no such host",
    ]
    assert session.finished == 1


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_trackers(None) == ()
    assert choose_trackers([]) == ()
    with pytest.raises(SetupError, match="wandb is not installed") as caught:
        choose_trackers(["wandb"])
    assert "pip install wandb" in caught.value.hint
    monkeypatch.undo()
    assert choose_trackers(None) == ("tensorboard",)


LINE = re.compile(r"(\d+) (\d+\.\d{6}) (\d+\.\d{4}) (0\.\d{8}) (\d{4}-\d\d-\d\d \d\d:\S+) (\d+)$")


def read_log(path: Path) -> list[tuple[int, float, float, float, int]]:
    rows = []
    for line in path.read_text().splitlines():
        if found := LINE.fullmatch(line):
            epoch, loss, exponential, rate, _, own = found.groups()
            rows.append((int(epoch), float(loss), float(exponential), float(rate), int(own)))
    return rows


def test_the_log_of_the_reference(tmp_path: Path) -> None:
    """A mini-epoch of 40320 samples is 4 steps of 10080."""
    path, metrics = tmp_path / "train_log.txt", tmp_path / "metrics.jsonl"

    def take(steps: range) -> None:
        log = TrainLog(path, metrics, {"micro_bsz": 10080}, 10080)
        for step in steps:
            loss = math.nan if step == 6 else float(step)
            with metrics.open("a") as file:
                file.write(json.dumps(report(step, 10, loss=loss).row()) + "\n")
            log(report(step, 10, loss=loss))

    take(range(1, 11))
    whole = [
        (0, 2.5, 12.1825, 0.001, 0),
        (1, 6.666667, 785.7720, 0.001, 1),  # 5, 7 and 8: step 6 was skipped
        (2, 9.5, 13359.7268, 0.001, 2),  # the end of the run
    ]
    assert read_log(path) == whole
    lines = path.read_text().splitlines()
    assert re.fullmatch(r"NEW RUN \d{4}(-\d\d){5}", lines[0])
    assert lines[1] == "{'micro_bsz': 10080}"
    rows = metrics.read_text().splitlines()
    metrics.write_text("\n".join(rows[:6]) + "\n")  # killed, and resumed after step 6
    take(range(7, 11))
    assert [row[:4] for row in read_log(path)] == [row[:4] for row in whole]
    assert [row[4] for row in read_log(path)] == [0, 0, 1]
    assert path.read_text().count("NEW RUN") == 2

    early = TrainLog(tmp_path / "early.txt", metrics, {}, 10080)
    early(report(1, 10, loss=2.0))
    early(report(2, 10, loss=4.0, found={"end_early": "no improvement"}))
    assert [row[:2] for row in read_log(tmp_path / "early.txt")] == [(0, 3.0)]
