"""The schedules against the values recorded from the reference."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkvkit import Schedule
from rwkvkit.errors import UsageError
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.plan import plan_training

RUNS = json.loads((Path(__file__).parents[1] / "golden/data/schedules.json").read_text())


def schedule_of(config: dict) -> Schedule:
    by_tokens = config["my_exit_tokens"] > 0
    decay_final = config["weight_decay_final"]
    return Schedule(
        lr_init=config["lr_init"],
        lr_final=config["lr_final"],
        warmup_steps=config["warmup_steps"],
        exit_tokens=config["my_exit_tokens"] if by_tokens else None,
        tokens_per_step=config["ctx_len"] * config["real_bsz"] if by_tokens else None,
        total_steps=None if by_tokens else config["epoch_steps"] * config["epoch_count"],
        weight_decay=config["weight_decay"],
        weight_decay_final=decay_final if decay_final > 0 else None,
    )


@pytest.mark.parametrize("run", RUNS, ids=range(len(RUNS)))
def test_reference_values(run: dict) -> None:
    config, schedule = run["config"], schedule_of(run["config"])
    first = config["epoch_begin"] * config["epoch_steps"]
    compared = 0
    for row in run["steps"]:
        # The reference counts a resumed run's warmup from the restart; an exact resume does not.
        if first and row["step"] < config["warmup_steps"]:
            continue
        step = first + row["step"]
        assert schedule.lr(step) == pytest.approx(row["lr"][0], rel=1e-9)
        assert 2 * schedule.lr(step) == pytest.approx(row["lr"][1], rel=1e-9)
        assert schedule.weight_decay(step) == pytest.approx(row["weight_decay"][2], rel=1e-9)
        compared += 1
    assert compared >= 6


def test_no_second_warmup() -> None:
    schedule = schedule_of(RUNS[0]["config"])
    assert schedule.lr(50_400) == pytest.approx(RUNS[0]["config"]["lr_init"], rel=0.2)


def test_steps_cover_the_exit_tokens() -> None:
    schedule = Schedule(
        lr_init=1e-3, lr_final=1e-4, warmup_steps=0, exit_tokens=1001, tokens_per_step=100
    )
    assert schedule.steps == 11
    assert schedule.progress(10) < 1
    assert schedule.progress(11) == 1
    assert schedule.lr(11) == pytest.approx(1e-4)


def test_a_warmup_as_long_as_the_run() -> None:
    by_steps = Schedule(lr_init=1.0, lr_final=0.1, warmup_steps=10, total_steps=10)
    by_tokens = Schedule(
        lr_init=1.0, lr_final=0.1, warmup_steps=10, exit_tokens=30, tokens_per_step=3
    )
    for schedule in (by_steps, by_tokens):
        assert schedule.steps == 10
        assert [schedule.lr(step) for step in (0, 9)] == pytest.approx([0.01, 0.901])


def test_a_rise_from_zero_is_linear() -> None:
    schedule = Schedule(lr_init=0.0, lr_final=1.0, warmup_steps=2, total_steps=6)
    rates = [schedule.lr(step) for step in range(6)]
    assert rates == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1])


def test_warmup_longer_than_the_run() -> None:
    schedule = Schedule(lr_init=1.0, lr_final=0.1, warmup_steps=100, total_steps=10)
    assert [schedule.lr(step) for step in (0, 9)] == pytest.approx([0.01, 0.01 + 0.99 * 0.09])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "give one"),
        ({"total_steps": 5, "exit_tokens": 5, "tokens_per_step": 1}, "give one"),
        ({"exit_tokens": 5}, "tokens_per_step"),
        ({"total_steps": 0}, "at least one step"),
        ({"total_steps": 5, "weight_decay_final": 0.1}, "above 0"),
        ({"total_steps": 5, "weight_decay": -1.0}, "negative"),
    ],
)
def test_contradictions(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Schedule(lr_init=1e-3, lr_final=1e-4, warmup_steps=0, **wrong)
    assert caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(("steps", "said"), [(4, True), (10, True), (11, False)])
def test_a_warmup_longer_than_the_run_is_said(steps: int, said: bool) -> None:
    samples = SimpleNamespace(once=100, sample_tokens=4, lines=())
    config = TrainConfig(micro_bsz=1, lr_init=1, lr_final=1, warmup_steps=10, total_steps=steps)
    lines = plan_training(config, samples).lines
    line = f"warmup_steps 10 in a run of {steps} steps: the learning rate never reaches lr_init"
    assert (line in lines) == said
