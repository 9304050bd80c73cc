import os
import random
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest

from rwkvkit.data.pool import ordered_map
from rwkvkit.errors import DataError, SetupError


@contextmanager
def start(number: int):
    yield partial(work, number)


def work(number: int, task: tuple[str, int], tell) -> tuple[int, int]:
    kind, value = task
    tell(value)
    if kind == "sleep":
        time.sleep(value / 1000)
    elif kind == "long":
        for _ in range(10_000):
            time.sleep(0.01)
            tell(0)
    elif kind == "fail":
        raise DataError("bad", where=f"task {value}", hint="mend it")
    elif kind == "crash" and number:  # the first worker lives in the test's process
        os._exit(value)
    elif kind == "exit":
        raise SystemExit(value)
    elif kind == "bug":
        raise ZeroDivisionError("a bug")
    return number, value


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (3, 1), (3, 2), (3, 4)])
def test_results_come_in_the_order_of_the_tasks(workers, threads):
    rng = random.Random(0)
    tasks = [("sleep", rng.randrange(12)) for _ in range(40)]
    results = list(ordered_map(start, tasks, workers, threads=threads))
    assert [value for _, value in results] == [value for _, value in tasks]
    assert {number for number, _ in results} == set(range(workers))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_in_order_is_raised(workers):
    tasks = [("sleep", 100), ("fail", 1), ("fail", 2), ("sleep", 0), ("fail", 4)]
    with pytest.raises(DataError, match="bad") as caught:
        list(ordered_map(start, tasks, workers))
    assert caught.value.where == "task 1"
    assert caught.value.hint == "mend it"


@pytest.mark.parametrize("workers", [1, 3])
def test_what_the_work_tells_arrives(workers):
    told = []
    list(ordered_map(start, [("sleep", i) for i in range(10)], workers, told.append))
    assert sorted(told) == list(range(10))


def test_nothing_to_do():
    assert list(ordered_map(start, [], 2)) == []


def test_a_dead_worker_is_an_error_with_its_exit_code():
    with pytest.raises(SetupError, match=r"ended unexpectedly \(exit code 7\)") as caught:
        list(ordered_map(start, [("crash", 7)] * 3, 2))
    assert "fewer workers" in caught.value.hint


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(ordered_map(start, [("bug", 0)] * 2, 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_work_that_ends_its_worker_is_an_error(threads):
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        list(ordered_map(start, [("exit", 3)] * 2, 2, threads=threads))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_stop_where_they_next_tell_something(threads):
    before = threading.active_count()
    tasks = [("sleep", 0), ("fail", 1), ("long", 0), ("long", 0)]
    with pytest.raises(DataError, match="bad"):
        list(ordered_map(start, tasks, 2, threads=threads))
    assert threading.active_count() == before
