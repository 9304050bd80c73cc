"""A run of two processes under ZeRO-2, cut short in every way, goes on as if it had not been."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_cases import any_step
from test_processes import STEPS, assert_gone, children, losses, rows, wait_for_step

pytestmark = pytest.mark.timeout(600)
ZERO = tuple(
    word
    for setting in ("micro_bsz=1", f"total_steps={STEPS}", "save_every=5", "zero=2")
    for word in ("--set", f"train.{setting}")
)
TWO = (*ZERO, "--processes", "2")


def test_killed_stopped_and_damaged_it_goes_on(folder, start) -> None:
    whole = start("train", "r.yaml", *TWO, "--set", "run_dir=whole")
    _, err = whole.communicate(timeout=200)
    assert whole.returncode == 0, err
    assert "engine deepspeed, ZeRO-2" in err
    cut = folder / "cut"

    def launch(step: int) -> tuple[subprocess.Popen[str], list[int]]:
        process = start("train", "r.yaml", *TWO, "--set", "run_dir=cut")
        wait_for_step(cut, max(step, len(rows(cut)) + 1), process)
        ranks = children(process.pid)
        assert len(ranks) == 2
        return process, ranks

    # A process dies: the launcher ends the other one and says why.
    process, ranks = launch(any_step(12, 18))
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "process 1 of the run was killed by SIGKILL" in err
    assert_gone(ranks)

    # The newest checkpoint is damaged: the one before it is taken. Then the launcher dies.
    *_, before, newest = sorted((cut / "checkpoints").iterdir())
    damaged = newest / "optimizer-1.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    process, ranks = launch(any_step(22, 30))
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert f"{newest.relative_to(folder)} is damaged (optimizer-1.pt has " in err
    assert f"resuming from {before.relative_to(folder)}" in err
    assert_gone(ranks)

    process, ranks = launch(any_step(34, 44))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.count("SIGTERM after step") == 1
    assert_gone(ranks)
    done = len(rows(cut))
    assert newest_step(cut) == done
    assert losses(cut) == losses(folder / "whole")[:done]

    # Another stage finishes it, which adds up in another order.
    other = ("--set", "train.zero=3", "--json")
    last = start("train", "r.yaml", *TWO, "--set", "run_dir=cut", *other)
    out, err = last.communicate(timeout=200)
    assert last.returncode == 0, err
    assert json.loads(out)["step"] == STEPS
    assert losses(cut) == pytest.approx(losses(folder / "whole"), abs=1e-5)


def newest_step(run: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("s*"))
