"""Processes wait for each other's work as long as it takes, but not for one that is gone."""

import datetime
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError, HashStore

from rwkvkit.errors import DataError, FailedElsewhere, LostProcess, SetupError
from rwkvkit.train import group, turns
from rwkvkit.train.group import joined
from rwkvkit.train.place import Place
from rwkvkit.train.turns import Turns
from rwkvkit.workflow.launch import free_port

# Times of minutes, shortened: the second process works for longer than a collective may take, and
# then dies as one of another machine does, whose launcher does not know of the first.
PROCESS = """
import datetime, os, sys, time
from rwkvkit.errors import LostProcess
from rwkvkit.train import group, turns
from rwkvkit.train.place import Place

turns._BEAT_SECONDS, turns._SILENCE_SECONDS = 0.1, 1.0
rank, place = int(sys.argv[1]), f"127.0.0.1:{sys.argv[2]}"
try:
    with group.joined(Place(rank, 2, rank, place, "rwkvkit"), on_gpu=False) as us:
        group.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=1)  # they have met
        with us.together():
            time.sleep(1.5 * rank)
        print(us.gather(rank), flush=True)
        with us.together():
            if rank == 1:
                time.sleep(0.3)
                os.kill(os.getpid(), 9)
except LostProcess as error:
    print(error.what)
"""


def test_work_may_take_longer_than_a_collective_but_must_go_on() -> None:
    port = str(free_port())
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen([*command, rank, port], stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        first, second = (each.communicate(timeout=120)[0].splitlines() for each in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert first == ["[0, 1]", "process 1 of the run gives no sign of life"]
    assert second == ["[0, 1]"]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]


@pytest.fixture
def soon() -> Iterator[type[Exception]]:
    """A signal that comes while the test waits, and the exception that its handler raises."""

    class Heard(Exception):
        pass

    def hear(number: int, frame: object) -> None:
        raise Heard

    before = signal.signal(signal.SIGUSR1, hear)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    yield Heard
    timer.join()
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_heard_while_the_first_works(soon) -> None:
    with pytest.raises(soon), Turns(HashStore(), 1, 2).first():
        pass


def test_a_signal_is_heard_before_the_others_come(soon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "COLLECTIVE_TIMEOUT", datetime.timedelta(seconds=2))
    place = Place(1, 2, 0, f"127.0.0.1:{free_port()}", "rwkvkit")
    with pytest.raises(soon), joined(place, on_gpu=False):
        pass


def test_once_one_has_failed_the_others_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_FAILURE_SECONDS", 0.2)
    store, done = HashStore(), threading.Event()
    first, second, third = (Turns(store, rank, 3) for rank in range(3))
    found: list[object] = []

    def fail() -> None:
        try:
            with first.together():
                raise DataError("bad")
        except DataError as error:
            found.append(error.what)

    def work() -> None:
        with pytest.raises(FailedElsewhere), third.together():
            done.wait()

    threads = [threading.Thread(target=target) for target in (fail, work)]
    for thread in threads:
        thread.start()
    with pytest.raises(FailedElsewhere) as caught, second.together():
        pass
    threads[0].join(10)
    assert found == ["bad"]
    assert caught.value.exit_code == DataError.exit_code
    assert threads[1].is_alive()
    done.set()
    threads[1].join(10)


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:37563."),
        RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation"),
        DistBackendError(f"{NCCL}remote process exited or there was a network error, NCCL 2.27"),
        DistBackendError(f"{NCCL}internal error\nLast error:\nNet : Connection closed by remote p"),
        DistNetworkError("Failed to recv, got 0 bytes."),
        DistStoreError("wait timeout after 600000ms, keys: /turn/1"),
    ],
)
def test_a_closed_connection_and_a_timeout_are_a_lost_process(error: RuntimeError) -> None:
    with pytest.raises(LostProcess, match="is gone or hangs") as caught, alone():
        raise error
    assert "resumes from the last checkpoint" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            DistBackendError(f"{NCCL}invalid usage\nDuplicate GPU detected : rank 1"),
            "Duplicate GPU",
        ),
        (RuntimeError(f"{GLOO}device.cc:99] no interface\nset one"), "set one"),
    ],
)
def test_a_failure_of_its_own_is_said_to_the_end(error: RuntimeError, said: str) -> None:
    with pytest.raises(SetupError, match=said) as caught, alone():
        raise error
    assert not isinstance(caught.value, LostProcess)
    assert "mend what it says" in str(caught.value.hint)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), alone():
        raise RuntimeError("shapes do not fit")


def alone() -> AbstractContextManager[object]:
    return joined(Place(0, 1, 0, f"127.0.0.1:{free_port()}", "rwkvkit"), on_gpu=False)
