"""Which process of a run this is, as told by whoever started it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwkvkit.errors import SetupError

_SLURM_PORTS = 20000


@dataclass(frozen=True)
class Place:
    """The place of this process among those that train one model.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local_rank: its number among those of its machine, from 0.
        master: ``host:port`` of the process with rank 0.
        by: who started it: ``torchrun`` (any launcher that sets the same variables), ``srun`` or
            ``rwkvkit``.
    """

    rank: int
    world: int
    local_rank: int
    master: str
    by: str

    def __post_init__(self) -> None:
        """Check the rank.

        Raises:
            SetupError: there is no process of this number.
        """
        if not 0 <= self.rank < self.world:
            raise SetupError(
                f"{self.by} says that this is process {self.rank} of {self.world}, from 0",
                where="environment",
                hint="start all processes alike, with torchrun, srun or rwkvkit train --gpus N",
            )

    def describe(self) -> str:
        """Return the line for people."""
        return f"{self.world} processes, started by {self.by}; they meet at {self.master}"


def started_by(environment: Mapping[str, str]) -> Place | None:
    """Read the place that torchrun or srun gave this process; None for a process on its own.

    Args:
        environment: of the process.

    Raises:
        SetupError: the variables are incomplete, or a number is none.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        _check_complete(environment, torchrun, "torchrun")
        rank, world, local = (_number(environment, name) for name in torchrun[:3])
        master = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        return Place(rank, world, local, master, "torchrun")
    # srun describes the step; a batch script outside of srun has only the job's variables.
    if _number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1:
        srun = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
        _check_complete(environment, srun, "srun")
        rank, world, local = (_number(environment, name) for name in srun[:3])
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        job = _number(environment, "SLURM_JOB_ID", "0")
        port = environment.get("MASTER_PORT") or str(_SLURM_PORTS + job % _SLURM_PORTS)
        return Place(rank, world, local, f"{host}:{port}", "srun")
    return None


def first_host(nodes: str) -> str:
    """Return the first host of Slurm's short form, such as ``gpu[003-005,9],login1``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else nodes


def _check_complete(environment: Mapping[str, str], names: Sequence[str], by: str) -> None:
    if missing := [name for name in names if name not in environment]:
        raise SetupError(
            f"{by} gave this process no {' and no '.join(missing)}",
            where="environment",
            hint=f"start the run with {by}, or with rwkvkit train --gpus N, or unset {names[0]}",
        )


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    if not re.fullmatch("[0-9]+", value):
        raise SetupError(
            f"{name} is {value!r}, not a number",
            where="environment",
            hint="unset it, or set it as torchrun and srun do",
        )
    return int(value)
