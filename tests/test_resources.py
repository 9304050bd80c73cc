import os

from rwkvkit.resources import cores


def test_cores_are_those_that_a_process_may_run_on():
    before = os.sched_getaffinity(0)
    assert cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
