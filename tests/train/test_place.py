"""What torchrun and srun say about a process."""

import pytest

from rwkvkit.errors import SetupError
from rwkvkit.train.place import Place, first_host, started_by

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "40123",
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_a_process_on_its_own() -> None:
    assert started_by({"HOME": "/root"}) is None
    job = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}
    assert started_by(job) is None  # the batch script itself, outside of srun


def test_torchrun_and_srun() -> None:
    assert started_by(TORCHRUN) == Place(3, 4, 1, "node0:29500", "torchrun")
    assert started_by(SRUN) == Place(9, 16, 1, "gpu003:20123", "srun")
    told = SRUN | {"MASTER_ADDR": "gpu003-ib", "MASTER_PORT": "1234"}
    place = started_by(told)
    assert place is not None
    assert place.master == "gpu003-ib:1234"
    assert "16 processes, started by srun" in place.describe()


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-005,9],login1", "gpu003"),
        ("gpu[3,9]", "gpu3"),
        ("gpu[7]", "gpu7"),
        ("a,b", "a"),
        ("a", "a"),
        ("a,gpu[1-2]", "a"),
        ("rack[1-2]-x", "rack1-x"),
    ],
)
def test_the_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environment", "name"), [(TORCHRUN, "LOCAL_RANK"), (SRUN, "SLURM_LOCALID")]
)
def test_incomplete_variables(environment: dict[str, str], name: str) -> None:
    rest = {key: value for key, value in environment.items() if key != name}
    with pytest.raises(SetupError, match=name) as caught:
        started_by(rest)
    assert "rwkvkit train --gpus N" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("environment", "name", "value"),
    [
        (TORCHRUN, "RANK", "a"),
        (TORCHRUN, "WORLD_SIZE", ""),
        (TORCHRUN, "LOCAL_RANK", "-1"),
        (SRUN, "SLURM_STEP_NUM_TASKS", "x"),
        (SRUN, "SLURM_PROCID", "1.5"),
        (SRUN, "SLURM_JOB_ID", "40123_7"),
    ],
)
def test_a_number_that_is_none(environment: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(SetupError, match=f"{name} is '{value}', not a number") as caught:
        started_by(environment | {name: value})
    assert "unset it" in str(caught.value.hint)


@pytest.mark.parametrize(("rank", "world"), [("4", "4"), ("0", "0")])
def test_a_rank_that_is_not_one_of_the_processes(rank: str, world: str) -> None:
    with pytest.raises(SetupError, match=f"process {rank} of {world}") as caught:
        started_by(TORCHRUN | {"RANK": rank, "WORLD_SIZE": world})
    assert "rwkvkit train --gpus N" in str(caught.value.hint)
