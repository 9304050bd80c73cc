"""The cores that a build takes."""

import os

import pytest

from rwkvkit.resources import cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="macOS binds no process to cores")
def test_cores_are_those_that_a_process_may_run_on():
    before = os.sched_getaffinity(0)
    assert cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
