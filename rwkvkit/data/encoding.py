"""The first half of a build: every task read, encoded and kept as a part."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.chunks import Chunk, count_lines, first_line, hash_file, opened, task_chunks
from rwkvkit.data.documents import Reject
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.parts import Part, PartWriter, find_part, read_record
from rwkvkit.data.pool import ordered_map
from rwkvkit.data.process import keep_freed_memory
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.tasks import Task
from rwkvkit.errors import DataError, SetupError

_MOST_THREADS = 4  # of one process: about a fifteenth of their work holds the interpreter
_TELL_SECONDS = 0.1


@dataclass(frozen=True)
class TaskWork:
    """How a task becomes a part; can be sent to another process.

    Attributes:
        chunk_work: what is done to each chunk.
        folder: where the parts lie.
        chunk_bytes: bytes of text in a chunk, at least.
        hashed: whether the index of a part holds content hashes.
    """

    chunk_work: ChunkWork
    folder: Path
    chunk_bytes: int
    hashed: bool

    def __call__(self, task: Task, tell: Callable[["Step"], None]) -> Part:
        """Return the part of a task, made now unless a good one is there.

        Args:
            task: what to do.
            tell: called with what was done, several times a second.

        Raises:
            DataError: an input cannot be read, or holds what is no document and bad lines are not
                skipped.
            SetupError: the part cannot be written.
        """
        steps = _Steps(tell)
        part = find_part(self.folder, task.number)
        if part is None:
            part = self._make(task, steps.add)
        else:
            record = part.record
            steps.add(Step(task.input_bytes, record.documents, record.tokens, record.rejected))
        steps.tell()
        return part

    def _make(self, task: Task, add: Callable[["Step"], None]) -> Part:
        hashes: dict[int, str] = {}
        told = 0
        with PartWriter(self.folder, task.number, hashed=self.hashed) as writer:
            if task.hashes_only:
                # A step of nothing: where this worker is to stop, it learns of it.
                hashes[task.first_file] = hash_file(task.files[0], lambda: add(Step()))
            else:
                for chunk in task_chunks(task, self.chunk_bytes, hashes):
                    encoded = self.chunk_work(chunk)
                    if encoded.rejects and not self.chunk_work.skip_bad:
                        raise self._bad_line(encoded.rejects[0], task, writer.lines, chunk)
                    with writing(self.folder):
                        writer.add(encoded)
                    rejected = len(encoded.rejects)
                    add(Step(chunk.input_bytes, len(encoded.sizes), len(encoded.tokens), rejected))
                    told += chunk.input_bytes
                if told < task.input_bytes:  # a range in which nothing starts
                    add(Step(task.input_bytes - told))
            with writing(self.folder):
                return writer.finish(hashes)

    def _bad_line(self, reject: Reject, task: Task, lines: int, chunk: Chunk) -> DataError:
        """Return the error for a line of a chunk before which the task read ``lines``."""
        if task.files[0].is_table:
            line = chunk.start + reject.line  # a chunk of rows begins with the number of its first
        else:
            line = self._lines_before(task) + lines + reject.line
        file = task.files[reject.file - task.first_file]
        if file.format == "jsonl" and line == 1 and reject.raw.lstrip().startswith("["):
            name = Path(file.name.removesuffix(".gz").removesuffix(".zst"))
            hint = (
                f"it looks like one JSON array: jq -c '.[]' {name} > {name.with_suffix('.jsonl')}"
            )
        else:
            skip = "on_error: skip leaves such lines out"
            hint = f"{reject.hint}; or {skip}" if reject.hint else skip
        return DataError(reject.reason, where=f"{file.name}:{line}", hint=hint)

    def _lines_before(self, task: Task) -> int:
        """Return how many lines of its file come before a task; none, unless it is a range.

        The parts of the ranges before it say how many each has. From the first one that is not
        made yet, which another worker has, lines are counted.
        """
        if not task.start:
            return 0
        ranges = task.number - task.first_range
        lines, known = 0, task.start
        for number in range(ranges):
            record = read_record(self.folder, task.first_range + number)
            if record is None:
                known = task.start // ranges * number
                break
            lines += record.lines
        with opened(task.files[0]) as raw:
            first = first_line(raw, replace(task, start=known))
            stop = first_line(raw, task)
        return lines + count_lines(task.files[0], first, stop)


@dataclass(frozen=True)
class Step:
    """What was done since the step before: bytes of input, and what came of them."""

    input_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    rejected: int = 0

    def __add__(self, other: "Step") -> "Step":
        return Step(
            self.input_bytes + other.input_bytes,
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.rejected + other.rejected,
        )


class _Steps:
    """Steps that are told together, a few times a second: each time wakes another process."""

    def __init__(self, tell: Callable[[Step], None]) -> None:
        self._tell = tell
        self._sum = Step()
        self._next = time.monotonic() + _TELL_SECONDS

    def add(self, step: Step) -> None:
        self._sum += step
        if time.monotonic() >= self._next:
            self.tell()

    def tell(self) -> None:
        self._tell(self._sum)
        self._sum = Step()
        self._next = time.monotonic() + _TELL_SECONDS


Run = Callable[[TaskWork, Iterable[Task], Callable[[Step], None]], Iterator[Part]]
"""Runs tasks somewhere and yields their parts in the order of the tasks."""


def run_local(workers: int) -> Run:
    """Return what runs tasks on this machine: in threads, processes, or here if it is one worker.

    Threads start at once and share what is loaded, but only compiled loops leave them the
    interpreter; of what else a task may hold, each process has to have its own.
    """

    def run(work: TaskWork, tasks: Iterable[Task], tell: Callable[[Step], None]) -> Iterator[Part]:
        tasks = list(tasks)
        compiled = not work.hashed and all(
            work.chunk_work.is_compiled(file) for task in tasks for file in task.files
        )
        threads = _MOST_THREADS if compiled else 1
        return ordered_map(partial(_start, work), tasks, workers, tell, threads=threads)

    return run


@contextmanager
def _start(work: TaskWork, number: int) -> Iterator[TaskWork]:
    keep_freed_memory()
    yield work


def encode_tasks(tasks: Sequence[Task], work: TaskWork, *, run: Run, report: Report) -> list[Part]:
    """Make the parts of ``tasks`` and return them, in the same order.

    Raises:
        DataError: an input cannot be read, or holds what is no document and bad lines are not
            skipped; always the first such place in the corpus, however the tasks run.
        SetupError: the parts cannot be written.
    """
    total = sum(task.input_bytes for task in tasks)
    done = Step()

    def tell(step: Step) -> None:
        nonlocal done
        done += step
        report(
            Progress("encode", done.input_bytes, total, done.documents, done.tokens, done.rejected)
        )

    return list(run(work, tasks, tell))


def placed_rejects(
    tasks: Sequence[Task], parts: Sequence[Part], inputs: Sequence[InputFile]
) -> Iterator[tuple[InputFile, Reject]]:
    """Yield the rejected lines of all parts with their file, numbered within it."""
    lines: Counter[int] = Counter()
    for task, part in zip(tasks, parts, strict=True):
        for reject in part.rejects():
            before = lines[task.first_file]
            yield inputs[reject.file], replace(reject, line=before + reject.line)
        lines[task.first_file] += part.record.lines


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error that says where.

    Raises:
        SetupError: the body raised OSError: no space, no permission, a limit.
    """
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"cannot write the output: {error.strerror or error}",
            where=str(path),
            hint="the folder must be writable, with room for twice the size of the output",
        ) from error
