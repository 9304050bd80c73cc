"""Two processes over gloo: the losses of one, however often they are cut short; nothing is left."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import any_step

from rwkvkit.workflow.launch import free_port

pytestmark = pytest.mark.timeout(600)  # several starts of two processes in a test
STEPS = 60
SOLO = ("--set", "train.micro_bsz=2", "--set", f"train.total_steps={STEPS}")
TWO = ("--set", "train.micro_bsz=1", "--set", f"train.total_steps={STEPS}", "--processes", "2")


def rows(folder: Path) -> list[dict]:
    log = folder / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the log has a later step than before and this one."""
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    task = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in task.read_text().split()]


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an orphan that has ended waits for this container's first process


def test_cut_short_again_and_again_it_goes_on_as_if_it_had_not_been(folder, run, start) -> None:
    """One process, then two whose second is killed, two whose launcher is, two stopped, one."""
    assert run("train", "r.yaml", *SOLO, "--set", "run_dir=whole").code == 0
    cut = folder / "cut"
    first = start("train", "r.yaml", *SOLO, "--set", "run_dir=cut")
    wait_for_step(cut, 4, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()

    def launch(step: int) -> tuple[subprocess.Popen[str], list[int]]:
        process = start("train", "r.yaml", *TWO, "--set", "run_dir=cut")
        done = len(rows(cut))
        wait_for_step(cut, max(step, done + 1), process)
        return process, children(process.pid)

    # A process dies: the run ends with its reason, within the time the others need to notice.
    process, ranks = launch(any_step(5, 16))
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5
    assert err.count("error: ") == 1
    assert "process 1 of the run was killed by SIGKILL" in err
    assert "resuming from cut/checkpoints/step-" in err
    assert_gone(ranks)

    # The launcher dies: so do the processes.
    process, ranks = launch(any_step(20, 30))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_gone(ranks)

    # SIGTERM to the launcher: all stop after the same step, and a checkpoint is saved.
    process, ranks = launch(any_step(34, 44))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.count("SIGTERM after step") == 1
    assert_gone(ranks)
    newest = max(path.name for path in (cut / "checkpoints").iterdir())
    assert newest == f"step-{len(rows(cut)):08d}"

    assert run("train", "r.yaml", *SOLO, "--set", "run_dir=cut").code == 0
    assert losses(cut) == pytest.approx(losses(folder / "whole"), abs=1e-5)


def test_two_processes_resume_bit_for_bit_and_torchrun_starts_them_too(folder, run, start) -> None:
    """x060 with dropout: the random states of each process count."""
    model = ("--set", "model.arch=x060", "--set", "train.dropout=0.1")
    process = start("train", "r.yaml", *TWO, *model, "--set", "run_dir=whole", "--json")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["step"] == STEPS
    assert "2 processes, started by rwkvkit" in err
    assert err.count("global batch 2 samples") == 1
    assert "x 2 processes" in err

    process = start("train", "r.yaml", *TWO, *model, "--set", "run_dir=cut")
    wait_for_step(folder / "cut", 20, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "rwkvkit", "train", "r.yaml", *TWO[:-2], *model]
    again = subprocess.run(
        [*command, "--set", "run_dir=cut"], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    assert "2 processes, started by torchrun" in again.stderr
    assert losses(folder / "cut") == losses(folder / "whole")

    changed = run(
        "train",
        "r.yaml",
        *model,
        "--set",
        "train.micro_bsz=1",
        "--set",
        "run_dir=cut",
        "--set",
        f"train.total_steps={STEPS}",
        "--dry-run",
    )
    assert changed.code == 3
    assert "global_batch 2 -> 1" in changed.err
    assert "x processes" in changed.err


def test_a_full_disk_and_a_mistake_are_said_once(folder, run, start) -> None:
    assert run("prepare", "r.yaml").code == 0
    assert run("init-weights", "r.yaml").code == 0
    largest = (folder / "out/tiny/rwkv-init.pth").stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest * 3 // 2, largest * 3 // 2))

    process = start("train", "r.yaml", *TWO, "--json", preexec_fn=limit)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 5, err
    assert err.count("the checkpoint of step 3 could not be saved") == 1
    assert json.loads(out)["error"]["exit_code"] == 5
    assert list((folder / "out/tiny/checkpoints").iterdir()) == []

    process = start("train", "r.yaml", *TWO, "--set", "model.vocab_size=100")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 4, err
    assert err.count("error: ") == 1


def test_machines_that_are_given_different_recipes_do_not_train(folder, start) -> None:
    common = ["train", "r.yaml", "--processes", "1", "--nodes", "2"]
    common += ["--master", f"127.0.0.1:{free_port()}", "--node-rank"]
    nodes = [start(*common, "0"), start(*common, "1", "--set", "train.lr_init=1e-2")]
    said = [node.communicate(timeout=100)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [3, 3], said
    assert said[0].count("error: ") == 1
    assert "process 1 has another recipe than process 0 (train.lr_init 0.001 -> 0.01)" in said[0]
    assert "the same --set" in said[0]
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--gpus", "2", "--processes", "2"], 2, "give one"),
        (["--gpus", "64"], 5, "on the CPU say --processes N"),
        (["--nodes", "2", "--node-rank", "0"], 2, "add --gpus N"),
        (["--nodes", "2", "--processes", "1"], 2, "--node-rank 0 --master"),
        (["--processes", "1", "--node-rank", "1"], 2, "not one of 1 machines"),
        (["--processes", "1", "--master", "host"], 2, "HOST:29500"),
        (["--processes", "1", "--master", ":29500"], 2, "--master :29500 has no host"),
    ],
)
def test_options_that_cannot_be(folder, run, arguments: list[str], code: int, message: str) -> None:
    outcome = run("train", "r.yaml", *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert not (folder / "out").exists()


def test_a_dry_run_counts_the_processes(folder, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    outcome = run("train", "r.yaml", "--dry-run", "--gpus", "8")
    assert outcome.code == 0
    assert "global batch 16 samples = micro_bsz 2" in outcome.out
    assert "x 8 processes" in outcome.out
