"""A build that is killed or interrupted anywhere, and the same command after it."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from rwkvkit.data.build import Build
from rwkvkit.data.stages import Encode, Plan, Read, RepeatShuffle, WriteBinidx

def stop_at(progress):
    # Says that it has come to the wanted place, and waits there to be killed.
    global steps
    if progress.phase == phase:
        steps -= 1
        if steps == 0:
            print("here", flush=True)
            sys.stdin.read()

if __name__ == "__main__":
    source, prefix, workers, phase, steps = sys.argv[1:]
    workers, steps = int(workers), int(steps)
    read = Read.model_validate(Read.expand(source))
    chain = [read, Encode(), RepeatShuffle(epochs=2), WriteBinidx(prefix=prefix), Plan()]
    build = Build(chain, seed=42, ctx_len=16)
    build._chunk_bytes = 20_000
    build.run(workers=workers, progress=stop_at)
"""


@pytest.fixture
def command(tmp_path, jsonl):
    """Return a function that gives the command line of a build of one corpus."""
    source = jsonl("in.jsonl", [f"document {i} " + "word " * (i % 97) for i in range(3000)])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def make(prefix: str, workers: int, phase: str = "none", steps: int = 0) -> list[str]:
        path = str(tmp_path / prefix / "data")
        return [sys.executable, str(script), source, path, str(workers), phase, str(steps)]

    return make


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def stopped(command: list[str], signum: int) -> int:
    """Run a command to its stop, send a signal to its group, and return its exit status.

    Reading to the end of its output also waits for its workers, which hold the same pipe.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == b"here\n"
        if signum == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, signum)
        assert process.stdout.read() == b""
    return process.returncode


@pytest.mark.parametrize(
    ("workers", "phase", "steps"),
    [(1, "encode", 2), (3, "encode", 20), (1, "write", 2), (2, "write", 1)],
)
def test_the_same_command_after_a_kill_gives_the_same_bytes(
    command, build, tmp_path, workers, phase, steps
):
    assert stopped(command("out", workers, phase, steps), signal.SIGKILL) == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert left
    assert all(name.startswith(".data.build-") for name in left)

    subprocess.run(command("out", workers), check=True)
    clean = tmp_path / "clean" / "data"
    build(str(tmp_path / "in.jsonl"), prefix=clean, repeat={"epochs": 2}, plan=True).run()
    assert digests(tmp_path / "out") == digests(clean.parent)
    assert sorted(digests(clean.parent)) == ["data.bin", "data.idx", "data.manifest.json"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(command, tmp_path, workers):
    assert stopped(command("out", workers, "encode", 3), signal.SIGINT) == -signal.SIGINT
    assert not (tmp_path / "out").exists()
