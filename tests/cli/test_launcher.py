"""How long the launcher waits: for a save if asked to stop, briefly if a process has died."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvkit.resources import cores

GRACE = 0.5

# In place of a training process: its step and its save take longer than the grace.
RANK = f"""#!{sys.executable}
import json, os, pathlib, pickle, signal, sys, time
from rwkvkit.errors import InterruptedRun, StoppedAtOnce

_, _, _, launcher, errors, place, *_ = sys.argv
rank = json.loads(place)["rank"]
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
pathlib.Path(f"threads-{{rank}}").write_text(os.environ["OMP_NUM_THREADS"])
pathlib.Path(f"ready-{{rank}}").write_text(str(os.getpid()))
while not asked and os.getppid() == int(launcher):
    time.sleep(0.01)
if rank == 0:
    time.sleep({GRACE} * 4)
    pathlib.Path("saved").write_text(str(len(asked)))
kind = StoppedAtOnce if pathlib.Path("at-once").exists() else InterruptedRun
pathlib.Path(errors).write_bytes(pickle.dumps(kind("stopped after its step")))
sys.exit(130)
"""

LAUNCHER = f"""
import sys
from rwkvkit.errors import RwkvkitError
from rwkvkit.workflow import launch, supervise

sys.executable = "./rank"
supervise._GRACE_SECONDS = {GRACE}
try:
    launch.start(launch.Launch(processes=2), ["train"], print)
except RwkvkitError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the launcher with two stand-ins, and wait until both run."""
    (tmp_path / "rank").write_text(RANK)
    (tmp_path / "rank").chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not all(pid_of(tmp_path, rank) for rank in (0, 1)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


def pid_of(folder: Path, rank: int) -> int:
    ready = folder / f"ready-{rank}"
    return int(ready.read_text() or 0) if ready.exists() else 0


def test_the_processes_share_the_cores(tmp_path, launcher) -> None:
    for rank in (0, 1):
        assert (tmp_path / f"threads-{rank}").read_text() == str(max(1, cores() // 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_waits_for_the_step_and_the_save(tmp_path, launcher, number) -> None:
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert out == "stopped after its step\n"
    assert (tmp_path / "saved").read_text() == "1"  # asked once


def test_one_stopped_outside_the_loop_is_not_waited_for(tmp_path, launcher) -> None:
    (tmp_path / "at-once").touch()
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert not (tmp_path / "saved").exists()
    assert not Path(f"/proc/{pid_of(tmp_path, 0)}").exists()


def test_a_second_signal_kills(tmp_path, launcher) -> None:
    launcher.send_signal(signal.SIGTERM)
    time.sleep(GRACE)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert not (tmp_path / "saved").exists()


def test_when_one_has_died_the_others_have_the_grace_alone(tmp_path, launcher) -> None:
    os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 5
    assert "process 1 of the run was killed by SIGKILL" in out
    assert not (tmp_path / "saved").exists()
    assert not Path(f"/proc/{pid_of(tmp_path, 0)}").exists()
