"""A share of a build's tasks, for several machines that see the same folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvkit.data.parts import read_record
from rwkvkit.data.tasks import Task
from rwkvkit.errors import UsageError

_COUNT = "part-shards"  # a file that says how many there are


@dataclass(frozen=True)
class Shard:
    """One of several shares of the tasks.

    Attributes:
        number: which, from 1.
        count: how many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> "Shard":
        """Return the shard that ``3/16`` means, or ``slurm``: this task of its array.

        Raises:
            UsageError: it is no such text, or not within a Slurm array.
        """
        try:
            if text == "slurm":
                first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
                number = int(environment["SLURM_ARRAY_TASK_ID"]) - first + 1
                shard = cls(number, int(environment["SLURM_ARRAY_TASK_COUNT"]))
            else:
                first_half, _, second_half = text.partition("/")
                shard = cls(int(first_half), int(second_half))
        except KeyError as error:
            raise UsageError(
                f"{error.args[0]} is not set: this is no task of a Slurm array",
                where="--shard slurm",
                hint="start it with: sbatch --array=1-16, or name the shard: --shard 3/16",
            ) from error
        except ValueError as error:
            raise _no_shard(text) from error
        if not 1 <= shard.number <= shard.count:
            raise _no_shard(text)
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, task: Task) -> bool:
        """Whether a task is in this share."""
        return task.number % self.count == self.number - 1


def note_count(folder: Path, shard: Shard) -> None:
    """Leave word in the folder of a build of how many shards there are."""
    (folder / _COUNT).write_text(f"{shard.count}", encoding="ascii")


def check_complete(folder: Path, tasks: Sequence[Task]) -> None:
    """Check that every task has a part.

    Raises:
        UsageError: some have none; it names their shards.
    """
    missing = [task for task in tasks if read_record(folder, task.number) is None]
    if not missing:
        return
    try:
        count = int((folder / _COUNT).read_text(encoding="ascii"))
        shards = [Shard(number + 1, count) for number in range(count)]
        open_ = [str(shard) for shard in shards if any(map(shard.owns, missing))]
        hint = f"run again with --shard {', then '.join(open_)}"
    except (FileNotFoundError, ValueError):
        hint = "run every shard before, such as --shard 1/2 and --shard 2/2"
    raise UsageError(
        f"{len(missing):,} of {len(tasks):,} parts are missing",
        where="--merge",
        hint=hint,
    )


def _no_shard(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is no shard",
        where="--shard",
        hint="the third of sixteen is 3/16; slurm takes the numbers of a Slurm array",
    )
