"""A build that is killed or interrupted anywhere, and the same command after it."""

import os
import signal
import subprocess
import sys

import pytest
from output_cases import digests

SCRIPT = """
import sys
from rwkvkit.data import encoding
from rwkvkit.data.build import Build
from rwkvkit.data.stages import Encode, Plan, Read, RepeatShuffle, WriteBinidx

encoding._TELL_SECONDS = 0  # every step is told

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
    build._chunk_bytes, build._task_bytes = 20_000, 100_000
    build.run(workers=workers, progress=stop_at)
"""

DRIVER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from rwkvkit import WorldTokenizer
from rwkvkit.data import writing
from rwkvkit.data.build import Build
from rwkvkit.data.stages import Encode, Plan, Read, RepeatShuffle, WriteBinidx

def run(prefix, workers):
    read = Read.model_validate(Read.expand(sys.argv[1]))
    chain = [read, Encode(), RepeatShuffle(epochs=2), WriteBinidx(prefix=prefix), Plan()]
    build = Build(chain, seed=42, ctx_len=16)
    build._chunk_bytes, build._task_bytes = 20_000, 40_000
    writing._cache_bytes = lambda: 0  # so that tokens go through the buckets
    build.run(workers=workers, memory=200_000)

def started(prefix, workers):
    child = os.fork()
    if child == 0:
        run(prefix, workers)
        os._exit(0)
    return child

if __name__ == "__main__":
    clean, prefix = sys.argv[2:]
    WorldTokenizer().encode("word " * 1000)
    run(clean, 1)  # also loads what a build needs, so that the next time is that of the work
    start = time.monotonic()
    os.waitpid(started(clean, 1), 0)
    seconds = time.monotonic() - start
    rng = random.Random(2026)
    folder = Path(prefix).parent
    for moment in range(10):
        if moment % 2 == 0 and folder.exists():
            shutil.rmtree(folder)  # from the beginning; the other kills meet what was left
        child = started(prefix, 2 if moment in (3, 7) else 1)
        time.sleep(rng.random() * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        made = len(list(folder.glob(".data.build/part-*.json")))
        done = (folder / "data.manifest.json").exists()
        whole = not done or all(
            (folder / path.name).read_bytes() == path.read_bytes()
            for path in Path(clean).parent.iterdir()
        )
        print(made, done, whole, flush=True)
    run(prefix, 1)
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


def clean(build, tmp_path) -> dict[str, str]:
    prefix = tmp_path / "clean" / "data"
    build(str(tmp_path / "in.jsonl"), prefix=prefix, repeat={"epochs": 2}, plan=True).run()
    return digests(prefix.parent)


@pytest.mark.parametrize(
    ("workers", "phase", "steps"),
    [(1, "encode", 2), (1, "encode", 20), (3, "encode", 25), (1, "write", 1), (2, "write", 2)],
)
def test_the_same_command_after_a_kill_gives_the_same_bytes(
    command, build, tmp_path, workers, phase, steps
):
    assert stopped(command("out", workers, phase, steps), signal.SIGKILL) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".data.build"]

    subprocess.run(command("out", workers), check=True)
    assert digests(tmp_path / "out") == clean(build, tmp_path)
    assert sorted(digests(tmp_path / "out")) == ["data.bin", "data.idx", "data.manifest.json"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_keeps_what_was_done(command, build, tmp_path, workers):
    assert stopped(command("out", workers, "encode", 25), signal.SIGINT) == -signal.SIGINT
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("part-*.json")}
    assert kept
    # Again, to the beginning of the second half: what was there is as it was.
    assert stopped(command("out", workers, "write", 1), signal.SIGKILL) == -signal.SIGKILL
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    subprocess.run(command("out", workers), check=True)
    assert digests(tmp_path / "out") == clean(build, tmp_path)


def test_damaged_parts_are_made_again(command, build, tmp_path):
    stopped(command("out", 1, "write", 1), signal.SIGKILL)
    folder = tmp_path / "out" / ".data.build"
    tokens, index, gone, *_ = sorted(folder.glob("part-*.tokens"))
    with tokens.open("r+b") as file:
        file.write(b"\1\2\3")
    index.with_suffix(".index").write_bytes(index.with_suffix(".index").read_bytes()[:-1])
    gone.unlink()
    last = max(folder.glob("part-*.json"))
    last.write_text(last.read_text()[:-5])
    subprocess.run(command("out", 1), check=True)
    assert digests(tmp_path / "out") == clean(build, tmp_path)


def test_a_changed_source_starts_anew(command, build, tmp_path):
    stopped(command("out", 1, "encode", 25), signal.SIGKILL)
    source = tmp_path / "in.jsonl"
    source.write_text(source.read_text().replace("document 1 ", "documenT 1 "))
    subprocess.run(command("out", 1), check=True)
    assert digests(tmp_path / "out") == clean(build, tmp_path)


def test_another_source_of_the_same_size_and_time_starts_anew(command, build, tmp_path):
    """Such as a package manager or a copying program leaves it."""
    source, other = tmp_path / "in.jsonl", tmp_path / "other.jsonl"
    other.write_text(source.read_text().replace("word ", "else "))
    for path in (source, other):
        os.utime(path, (10**9, 10**9))
    stopped(command("out", 1, "encode", 25), signal.SIGKILL)
    other.replace(source)
    subprocess.run(command("out", 1), check=True)
    assert digests(tmp_path / "out") == clean(build, tmp_path)


def test_ten_kills_at_random_moments_and_the_same_command(tmp_path, build, jsonl):
    source = jsonl("in.jsonl", [f"document {i} " + "word " * (i % 97) for i in range(6000)])
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [
        sys.executable,
        script,
        source,
        tmp_path / "clean" / "data",
        tmp_path / "out" / "data",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seen = [line.split() for line in done.stdout.splitlines()]
    assert len(seen) == 10
    assert all(whole == "True" for _, _, whole in seen)
    assert any(made != "0" for made, _, _ in seen), seen
    assert digests(tmp_path / "out") == digests(tmp_path / "clean")
