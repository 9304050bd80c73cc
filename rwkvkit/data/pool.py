"""Run one function over many tasks in several workers, results in the order of the tasks.

The first worker is a thread of this process, so that work is under way while the others, which are
processes, still start. Where the function leaves the interpreter's lock free, more of them are.
"""

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from rwkvkit.errors import RwkvkitError, SetupError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
Tell = Callable[[Any], None]
"""Takes word of work under way."""


def ordered_map(
    start: Callable[[int], AbstractContextManager[Callable[[_Task, Tell], _Result]]],
    tasks: Sequence[_Task],
    workers: int,
    tell: Tell = lambda _: None,
    *,
    threads: int = 1,
) -> Iterator[_Result]:
    """Yield a function of each task, in the order of the tasks.

    Args:
        start: makes the function of the worker with that number, as a context around its use;
            called once in each worker. It must be picklable if there are processes.
        tasks: what to work on; given out as workers become free.
        workers: how many; with 1, everything happens in this thread.
        tell: called in this process with whatever the function tells while it works.
        threads: how many of several workers are threads of this process, at least one.

    Raises:
        RwkvkitError: what the function raised, for the first task in order that failed; a
            SetupError if a worker died.
    """
    if workers == 1:
        with start(0) as function:
            for task in tasks:
                yield function(task, tell)
        return
    with _Workers(start, workers, min(threads, workers), tell) as crew:
        yield from crew.map(tasks)


class _Workers:
    """The parent's end: a pipe to each worker, at most one task in each; threads come first.

    The parent sends only to a worker that waits for a task, so neither end can block the other,
    and a worker whose parent is gone meets the end of its pipe and leaves.
    """

    def __init__(self, start: Callable[[int], Any], count: int, n_threads: int, tell: Tell) -> None:
        self._tell = tell
        context = multiprocessing.get_context("spawn")
        self._threads: dict[Connection, threading.Thread] = {}
        for number in range(n_threads):
            ours, theirs = context.Pipe()
            self._threads[ours] = threading.Thread(
                target=_serve, args=(theirs, start, number), daemon=True
            )
        self._processes: dict[Connection, Any] = {}
        for number in range(n_threads, count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve_alone, args=(theirs, start, number), daemon=True
            )
            self._processes[ours] = process
            process.start()
            theirs.close()
        for thread in self._threads.values():
            thread.start()

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
        for connection in self._threads:
            connection.close()  # its thread notices when it next tells something
        for thread in self._threads.values():
            thread.join()
        for process in self._processes.values():
            process.join()

    def map(self, tasks: Sequence[Any]) -> Iterator[Any]:
        free = [*self._processes, *reversed(self._threads)]
        busy: dict[Connection, int] = {}
        done: dict[int, tuple[Any, BaseException | None]] = {}
        given = following = 0
        while following < len(tasks):
            while free and given < len(tasks):
                connection = free.pop()
                self._send(connection, tasks[given])
                busy[connection] = given
                given += 1
            for ready in wait(list(busy), timeout=0 if following in done else None):
                assert isinstance(ready, Connection)
                kind, value = self._receive(ready)
                if kind == "told":
                    self._tell(value)
                else:
                    done[busy.pop(ready)] = value
                    free.append(ready)
            if following in done:
                result, failure = done.pop(following)
                if failure is not None:
                    raise failure
                following += 1
                yield result

    def _send(self, connection: Connection, task: Any) -> None:
        try:
            connection.send(task)
        except OSError as error:
            raise self._died(connection) from error

    def _receive(self, connection: Connection) -> tuple[str, Any]:
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(connection) from error

    def _died(self, connection: Connection) -> SetupError:
        process = self._processes[connection]
        process.join(timeout=5)
        return SetupError(
            f"a worker process ended unexpectedly (exit code {process.exitcode})",
            hint="-9 is mostly a lack of memory: use fewer workers; a script that calls this "
            "must do so under: if __name__ == '__main__'",
        )


def _serve_alone(connection: Connection, start: Callable[[int], Any], number: int) -> None:
    """Be a worker in a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the workers
    _serve(connection, start, number)


def _serve(connection: Connection, start: Callable[[int], Any], number: int) -> None:
    """Be a worker: take a task, send back what it tells and its result, until the pipe ends."""
    with connection, contextlib.suppress(EOFError, OSError), contextlib.ExitStack() as stack:
        function = None

        def tell(value: Any) -> None:
            connection.send(("told", value))

        while True:
            task = connection.recv()
            answer: tuple[Any, BaseException | None]
            try:
                function = function or stack.enter_context(start(number))
                answer = (function(task, tell), None)
            except RwkvkitError as error:
                answer = (None, error)
            except BaseException:  # sys.exit() too: it would end a thread without a word
                answer = (None, RuntimeError(f"in a worker:\n{traceback.format_exc()}"))
            connection.send(("done", answer))
