"""The processes of a run: which one this is, and what they agree on."""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rwkvkit.errors import FailedElsewhere, LostProcess, RwkvkitError, SetupError
from rwkvkit.train.place import Place

T = TypeVar("T")

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others inside a step."""
_PREPARATION_TIMEOUT = datetime.timedelta(days=14)
_FAILURE_TIMEOUT = datetime.timedelta(seconds=10)
_BUCKET = 1 << 24  # elements of one all-reduce


class Group(Protocol):
    """The processes that train one model together. Each method is called by all of them.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
        local_rank: number of this process among those of its machine, from 0.
    """

    rank: int
    world: int
    local_rank: int

    def sum(self, value: float) -> float:
        """Return the sum of ``value`` over the processes."""

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, by rank; anything that pickles."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, on any device, by their sums over the processes."""

    def first(self) -> contextlib.AbstractContextManager[None]:
        """Let rank 0 go through the body before the others, however long it takes.

        Raises:
            FailedElsewhere: in the others, when rank 0 has failed.
        """

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Let a failure of the body in one process be a failure of all, known to all.

        Raises:
            FailedElsewhere: in the processes whose own body went well.
        """


class Solo:
    """The group of a single process; see ``Group``."""

    rank, world, local_rank = 0, 1, 0

    def sum(self, value: float) -> float:
        """Return ``value``."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return ``[value]``."""
        return [value]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors."""

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Run the body."""
        yield

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run the body."""
        yield


class Processes:
    """Processes under ``torch.distributed``: gloo for what they agree on, NCCL for GPU tensors.

    Args:
        place: of this process.
        on_gpu: whether tensors of a GPU will be added up.

    Raises:
        SetupError: the other processes cannot be reached.
    """

    def __init__(self, place: Place, *, on_gpu: bool) -> None:
        self.rank, self.world, self.local_rank = place.rank, place.world, place.local_rank
        url = f"tcp://{place.master}?rank={place.rank}&world_size={place.world}"
        url = "env://" if place.by == "torchrun" else url  # its agent keeps the store
        try:
            self._store, _, _ = next(dist.rendezvous(url, timeout=COLLECTIVE_TIMEOUT))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=dist.PrefixStore("run", self._store),
                rank=self.rank,
                world_size=self.world,
                timeout=COLLECTIVE_TIMEOUT,
            )
            self._agreement = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise SetupError(
                f"the processes of the run did not meet: {str(error).splitlines()[0]}",
                where=place.master,
                hint="start it again with rwkvkit train --gpus N, torchrun or srun; every machine "
                "must reach the first one at this address",
            ) from error
        self._turns = 0

    def sum(self, value: float) -> float:
        """See ``Group.sum``."""
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self._agreement)
        return float(total)

    def gather(self, value: T) -> list[T]:
        """See ``Group.gather``."""
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value, group=self._agreement)
        return values

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See ``Group.add``; small tensors travel together."""
        bucket: list[Tensor] = []
        for position, tensor in enumerate(tensors, 1):
            bucket.append(tensor)
            if position < len(tensors) and sum(each.numel() for each in bucket) < _BUCKET:
                continue
            flat = torch.cat([each.reshape(-1) for each in bucket])
            dist.all_reduce(flat)
            parts = flat.split([each.numel() for each in bucket])
            for each, part in zip(bucket, parts, strict=True):
                each.copy_(part.view_as(each))
            bucket = []

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """See ``Group.first``; waiting costs no collective, which would time out."""
        self._turns += 1
        turn = f"turn/{self._turns}"
        if self.rank > 0:
            self._store.wait([turn], _PREPARATION_TIMEOUT)
            if code := int(self._store.get(turn)):
                raise FailedElsewhere(code)
            yield
            return
        code = RwkvkitError.exit_code
        try:
            yield
            code = 0
        except RwkvkitError as error:
            code = error.exit_code
            raise
        finally:
            self._store.set(turn, str(code))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """See ``Group.together``."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        self._turns += 1
        code = 0 if failure is None else getattr(failure, "exit_code", RwkvkitError.exit_code)
        self._store.set(f"end/{self._turns}/{self.rank}", str(code))
        ends = [f"end/{self._turns}/{rank}" for rank in range(self.world)]
        if failure is not None:
            # The others may wait for this one in the body: without it they never get to its end.
            with contextlib.suppress(RuntimeError):
                self._store.wait(ends, _FAILURE_TIMEOUT)
            raise failure
        self._store.wait(ends, COLLECTIVE_TIMEOUT)
        if worst := max(int(self._store.get(end)) for end in ends):
            raise FailedElsewhere(worst)


def said_once(group: Group, error: RwkvkitError) -> RwkvkitError:
    """Return an error that every process has found, so that rank 0 alone shows it."""
    return error if group.rank == 0 else FailedElsewhere(error.exit_code)


@contextlib.contextmanager
def joined(place: Place | None, *, on_gpu: bool) -> Iterator[Group]:
    """Join the processes of the run; a run of one process joins nothing.

    Args:
        place: of this process among them.
        on_gpu: whether tensors of a GPU will be added up.

    Raises:
        SetupError: the other processes cannot be reached.
        LostProcess: another one ended while this one was waiting for it.
    """
    if place is None:
        yield Solo()
        return
    try:
        yield Processes(place, on_gpu=on_gpu)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise LostProcess(
            f"another process of the run is gone ({str(error).splitlines()[0]})",
            where=f"process {place.rank}",
            hint="its own message says why; the same command resumes from the last checkpoint",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error is that of a collective whose other end is gone; gloo's has no class."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
