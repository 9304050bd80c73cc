"""Cut the inputs into tasks: pieces of work that are the same on every machine and in every run."""

from collections.abc import Sequence
from dataclasses import dataclass

from rwkvkit.data.inputs import InputFile
from rwkvkit.errors import UsageError
from rwkvkit.resources import cores

_TASK_BYTES = 16 << 20
_MOST_TASKS = 4096  # of one corpus, its compressed files and changes of format not counted
_MOST_FILES = 4096  # in a task
_SMALL = 64 << 20  # input bytes that this process encodes before workers would have started
_EXPANSION = 4  # how much compressed text counts for more than its size


@dataclass(frozen=True)
class Task:
    """A piece of the corpus; its result is a part.

    A plain jsonl file is cut into ranges, and so is a parquet file. A line, or a group of rows,
    belongs to the range that its first byte lies in, so a range needs no knowledge of the others.
    A file of several ranges has one more task, which only hashes it.

    Attributes:
        number: its place among all tasks, in the order of the corpus.
        first_file: index of the (first) file in the list of inputs.
        files: the file, or the text files that follow one another in a source.
        start: first byte of the range, in bytes on disk.
        stop: the byte after its last.
        first_range: number of the task that holds the file's first range.
        hashes_only: nothing is read but the bytes to hash.
    """

    number: int
    first_file: int
    files: tuple[InputFile, ...]
    start: int
    stop: int
    first_range: int
    hashes_only: bool = False

    @property
    def whole(self) -> bool:
        """Whether the task covers its files from the first byte to the last."""
        return self.start == 0 and self.stop == sum(file.size for file in self.files)

    @property
    def input_bytes(self) -> int:
        """Bytes on disk it stands for, for the progress."""
        return 0 if self.hashes_only else self.stop - self.start


def make_tasks(inputs: Sequence[InputFile], task_bytes: int | None = None) -> list[Task]:
    """Cut the inputs into tasks, in the order of the corpus.

    Args:
        inputs: the files.
        task_bytes: size of a range; by default 16 MiB, more where that gave thousands of tasks.
    """
    total = sum(file.size for file in inputs)
    size = task_bytes or max(_TASK_BYTES, total // _MOST_TASKS)
    tasks: list[Task] = []
    group: list[int] = []
    group_bytes = 0

    def add(first: int, last: int, start: int, stop: int) -> None:
        number = len(tasks)
        first_range = number - (start // size if first == last else 0)
        files = tuple(inputs[first : last + 1])
        tasks.append(Task(number, first, files, start, stop, first_range))

    def add_group() -> None:
        if group:
            add(group[0], group[-1], 0, group_bytes)
            group.clear()

    for i, file in enumerate(inputs):
        if file.format == "text" and not file.has_own_reader:
            full = len(group) >= _MOST_FILES or group_bytes >= size
            if group and (full or inputs[group[0]].source != file.source):
                add_group()
            group_bytes = (group_bytes if group else 0) + file.size
            group.append(i)
            continue
        add_group()
        if not file.in_ranges or file.size <= size:
            add(i, i, 0, file.size)
            continue
        number = len(tasks)
        tasks.append(Task(number, i, (file,), 0, file.size, number + 1, hashes_only=True))
        for start in range(0, file.size, size):
            add(i, i, start, min(start + size, file.size))
    add_group()
    return tasks


def n_workers(told: int | None, inputs: Sequence[InputFile]) -> int:
    """Return how many processes a build has.

    Args:
        told: their number, or None for one a core, or none but this one if there is little to do.
        inputs: the files.

    Raises:
        UsageError: fewer than one.
    """
    if told is not None and told < 1:
        raise UsageError(
            f"a build takes 1 worker at least, not {told}",
            hint="leave workers out for one a core",
        )
    return told or _default_workers(inputs)


def _default_workers(inputs: Sequence[InputFile]) -> int:
    if any(file.dataset for file in inputs):
        return cores()
    work = sum(file.size * (_EXPANSION if file.compression else 1) for file in inputs)
    return 1 if work < _SMALL else cores()
