"""Two hosts reached by a stand-in for ssh: they train as one, fail as one, and leave nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_launcher import RANK, pid_of
from test_processes import STEPS, assert_gone, children, losses, rows, running, wait_for_step

from rwkvkit.errors import DataError, FailedElsewhere, LostProcess, SetupError, UsageError
from rwkvkit.workflow.hostfile import Host, read_hostfile
from rwkvkit.workflow.launch import Launch
from rwkvkit.workflow.remote import read_error, write_error

pytestmark = pytest.mark.timeout(600)

# Like ssh it stands between two pipes: when it is gone, so is the command's stdin.
SSH = f"""#!{sys.executable}
import os, subprocess, sys, threading

*options, host, command = sys.argv[1:]
assert "-oBatchMode=yes" in options
if host == "down":
    print("ssh: connect to host down port 22: Connection refused", file=sys.stderr)
    sys.exit(255)
if host == "bare":
    command = command.replace("rwkvkit.cli.node", "absent_module")
there = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, start_new_session=True)

def carry():
    while chunk := os.read(0, 65536):
        there.stdin.write(chunk)
        there.stdin.flush()
    there.stdin.close()

threading.Thread(target=carry, daemon=True).start()
code = there.wait()
os._exit(255 if code < 0 else code)
"""


@pytest.fixture
def hosts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hostfile of two hosts with a process each."""
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(SSH)
    (folder / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (folder / "hosts").write_text("# twice this machine\n127.0.0.1 slots=1\n\nlocalhost slots=1\n")
    return folder / "hosts"


def test_two_hosts_train_as_one_and_end_as_one(folder, hosts, run, start) -> None:
    settings = ["--set", f"train.total_steps={STEPS}", "--set", "train.device=cpu"]
    whole = ["--set", "train.micro_bsz=2", "--set", "run_dir=whole"]
    assert run("train", "r.yaml", *settings, *whole).code == 0
    cut = folder / "cut"
    settings += ["--set", "train.micro_bsz=1", "--set", "run_dir=cut", "--hostfile", "hosts"]

    def launch(step: int) -> tuple[subprocess.Popen[str], list[list[int]]]:
        """Start and train to a step; returns by host ssh, what it runs there, and the rank."""
        process = start("train", "r.yaml", *settings)
        wait_for_step(cut, max(step, len(rows(cut)) + 1), process)
        found = []
        for ssh in children(process.pid):
            [node] = children(ssh)
            [rank] = children(node)
            found.append([ssh, node, rank])
        assert len(found) == 2
        return process, found

    # A process on one host dies.
    process, (first, second) = launch(8)
    os.kill(second[2], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert err.count("error: ") == 1
    assert "error: localhost: 127.0.0.1:" in err
    assert "process 1 of the run was killed by SIGKILL" in err
    assert "127.0.0.1: train: 2 processes, started by rwkvkit" in err
    assert_gone(first + second)

    # The connection to one host is lost.
    process, (first, second) = launch(16)
    os.kill(first[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "error: 127.0.0.1: the connection was lost" in err
    assert_gone(first + second)

    # The launcher is killed.
    process, (first, second) = launch(24)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_gone(first + second)

    # Ctrl-C: all stop after the same step, and a checkpoint is saved.
    process, (first, second) = launch(32)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.count("SIGINT after step") == 1
    assert_gone(first + second)
    assert max(path.name for path in (cut / "checkpoints").iterdir()).endswith(f"{len(rows(cut))}")

    process = start("train", "r.yaml", *settings, "--json")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["step"] == STEPS
    assert losses(cut) == pytest.approx(losses(folder / "whole"), abs=1e-5)


NODE = """
import sys
from rwkvkit.cli import node

sys.executable = "./rank"
node.SILENCE_SECONDS = 2.0
node.main()
"""


def test_a_host_that_hears_nothing_more_ends_its_processes(tmp_path: Path) -> None:
    (tmp_path / "rank").write_text(RANK)
    (tmp_path / "rank").chmod(0o755)
    node = subprocess.Popen([sys.executable, "-c", NODE], cwd=tmp_path, stdin=subprocess.PIPE)
    order = {"launch": {"processes": 1}, "arguments": [], "environment": {}}
    node.stdin.write(json.dumps(order).encode() + b"\n")
    begun, last = time.monotonic(), 0.0
    while not pid_of(tmp_path, 0) or time.monotonic() - begun < 3:  # it lives while it hears
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            node.stdin.write(b"\n")
            node.stdin.flush()
        assert node.poll() is None
        assert time.monotonic() - begun < 60
        time.sleep(0.01)
    assert running(pid_of(tmp_path, 0))
    assert node.wait(timeout=60) == 5  # and not without
    assert_gone([pid_of(tmp_path, 0)])
    node.stdin.close()


@pytest.mark.parametrize(
    ("host", "message", "hint"),
    [
        ("down", "down: ssh cannot reach it: ssh: connect to host down", "must work without a pa"),
        ("bare", "bare: rwkvkit did not start there", "must be there too"),
    ],
)
def test_a_host_that_cannot_take_part(folder, hosts, start, host, message, hint) -> None:
    hosts.write_text(f"localhost slots=1\n{host} slots=1\n")
    process = start("train", "r.yaml", "--hostfile", "hosts", "--master", "localhost:29500")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert err.count("error: ") == 1
    assert f"error: {message}" in err
    assert hint in err
    assert not (folder / "out").exists()


def test_without_ssh_it_says_what_to_install(folder, hosts, run, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    outcome = run("train", "r.yaml", "--hostfile", "hosts")
    assert outcome.code == 5
    assert "error: ssh: there is no program of this name" in outcome.err
    assert "OpenSSH" in outcome.err


def test_slots_are_gpus_unless_the_recipe_says_cpu(folder, hosts, start) -> None:
    hosts.write_text("localhost slots=64\n")
    process = start("train", "r.yaml", "--hostfile", "hosts")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "localhost: GPUs: torch sees" in err
    assert "train.device: cpu" in err


def test_a_dry_run_counts_the_slots(folder, hosts, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    hosts.write_text("a slots=8\nb slots=4\n")
    outcome = run("train", "r.yaml", "--dry-run", "--hostfile", "hosts")
    assert "x 12 processes" in outcome.out


def test_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("me@a.b slots=8 # big\n\n  # none\nc-1\tslots = 4\n")
    assert read_hostfile(path) == (Host("me@a.b", 8), Host("c-1", 4))
    assert read_hostfile(path)[0].address == "a.b"
    launch = Launch.of(None, None, None, None, None, path)
    assert launch.world == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=1\n\na slots=2\n", "hosts:3: a is already in line 1"),
        ("a slots=1\nb\n", "hosts:2: 'b' is no host"),
        ("a slots=0\n", "hosts:1: 'a slots=0' is no host"),
        ("-oProxyCommand=x slots=1\n", "hosts:1: "),
        ("a slots=x # 8\n", "hosts:1: 'a slots=x' is no host"),
        ("# none\n", "names no host"),
        ("localhost slots=1\nb slots=1\n", "others cannot reach localhost"),
        (None, "No such file"),
    ],
)
def test_a_hostfile_that_cannot_be(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Launch.of(None, None, None, None, None, path)
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_hostfile_says_it_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--hostfile says it all, and --gpus"):
        Launch.of(8, None, None, None, None, tmp_path / "hosts")


def test_errors_travel_as_json() -> None:
    for error in (DataError("bad", where="f:1", hint="mend"), LostProcess("gone")):
        back = read_error(json.loads(json.dumps(write_error(error))), "b")
        assert (type(back), back.what, back.hint) == (type(error), error.what, error.hint)
    assert read_error(write_error(SetupError("full", where="/x")), "b").where == "b: /x"
    assert read_error(write_error(FailedElsewhere(4)), "b").exit_code == 4
