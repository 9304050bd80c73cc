"""Run tasks on a Ray cluster whose nodes see the same files as this process."""

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from rwkvkit.data.encoding import Run, Step, TaskWork
from rwkvkit.data.parts import Part
from rwkvkit.data.tasks import Task
from rwkvkit.errors import RwkvkitError, SetupError

_AHEAD = 1000  # tasks that Ray knows of at a time


def run_ray(address: str | None = None) -> Run:
    """Return what runs tasks on a Ray cluster, one CPU each.

    A task whose node dies is run again on another; Ray does that, and a task that finds its part
    made is done at once.

    Args:
        address: of the cluster; the one that Ray finds, or a new one on this machine, if not given.

    Raises:
        SetupError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise SetupError("Ray is not installed", hint="pip install 'rwkvkit[ray]'") from error

    def run(work: TaskWork, tasks: Iterable[Task], tell: Callable[[Step], None]) -> Iterator[Part]:
        if not ray.is_initialized():
            try:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
            except ConnectionError as error:
                raise SetupError(
                    f"no Ray cluster answers: {error}", hint="start one with: ray start --head"
                ) from error
        shared = ray.put(replace(work, folder=work.folder.absolute()))
        remote = ray.remote(max_retries=-1)(_do)
        folder = os.getcwd()  # noqa: PTH109
        stop = work.folder.absolute() / f"stop-{uuid.uuid4().hex}"
        waiting = []
        try:
            for task in tasks:
                waiting.append(remote.remote(shared, task, folder, stop))
                if len(waiting) >= _AHEAD:
                    yield _taken(ray.get(waiting[0]), tell)
                    waiting.pop(0)
            while waiting:
                yield _taken(ray.get(waiting[0]), tell)
                waiting.pop(0)
        finally:
            # A failure or an interrupt: the cluster is for others now. ray.cancel() can end this
            # process where a task ends at the same moment ("task that was not pending").
            with contextlib.suppress(OSError):
                if waiting:
                    stop.touch()

    return run


def _do(
    work: TaskWork, task: Task, folder: str, stop: Path
) -> tuple[Part | None, list[Step], RwkvkitError | None]:
    """Run a task in a worker, in the folder that relative paths of the inputs start from.

    Nothing is done once there is a file ``stop``: nobody waits for the result any more.
    """
    if stop.exists():
        return None, [], None
    os.chdir(folder)
    steps: list[Step] = []
    try:
        return work(task, steps.append), steps, None
    except RwkvkitError as error:
        return None, steps, error


def _taken(
    answer: tuple[Part | None, list[Step], RwkvkitError | None], tell: Callable[[Step], None]
) -> Part:
    part, steps, error = answer
    if error is not None:
        raise error
    assert part is not None
    for step in steps:
        tell(step)
    return part
