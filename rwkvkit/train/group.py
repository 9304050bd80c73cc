"""The processes of a run: which one this is, and what they agree on."""

import contextlib
import datetime
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rwkvkit.errors import FailedElsewhere, LostProcess, RwkvkitError, SetupError
from rwkvkit.train.place import Place
from rwkvkit.train.turns import Turns

T = TypeVar("T")

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others in a collective, such as those of a step."""
_BUCKET = 1 << 24  # elements of one all-reduce
# Gloo's errors have no class, and NCCL's have one for all of them.
_COLLECTIVE = re.compile("gloo|NCCL")
_LOST = re.compile(
    "tim(ed|ing) out|timeout|closed by|connection (reset|closed)|broken pipe|remote process exit",
    re.IGNORECASE,
)


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
        """Let a failure of the body, which may take hours, be a failure of all processes.

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

    A collective ends the run when one of them does not come to it for ten minutes; ``first`` and
    ``together`` are none, see ``Turns``.

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
            meeting = dist.rendezvous(url, timeout=COLLECTIVE_TIMEOUT)
            store, _, _ = _hearing_signals(lambda: next(meeting))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=dist.PrefixStore("run", store),
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
        self._turns = Turns(store, self.rank, self.world)

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
        elements = 0
        for position, tensor in enumerate(tensors, 1):
            bucket.append(tensor)
            elements += tensor.numel()
            if position < len(tensors) and elements < _BUCKET:
                continue
            flat = torch.cat([each.reshape(-1) for each in bucket])
            dist.all_reduce(flat)
            parts = flat.split([each.numel() for each in bucket])
            for each, part in zip(bucket, parts, strict=True):
                each.copy_(part.view_as(each))
            bucket, elements = [], 0

    def first(self) -> contextlib.AbstractContextManager[None]:
        """See ``Group.first``."""
        return self._turns.first()

    def together(self) -> contextlib.AbstractContextManager[None]:
        """See ``Group.together``."""
        return self._turns.together()

    def beating(self) -> contextlib.AbstractContextManager[None]:
        """Give the others signs of life while in the context."""
        return self._turns.beating()


def _hearing_signals(work: Callable[[], T]) -> T:
    """Return what ``work`` does, which waits outside of Python, where no signal is heard."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="meeting", daemon=True).start()
    return found.result()


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
        SetupError: the other processes cannot be reached, or NCCL or gloo fails here.
        LostProcess: another one ended, or came too late, while this one was waiting for it.
    """
    if place is None:
        yield Solo()
        return
    try:
        group = Processes(place, on_gpu=on_gpu)
        with group.beating():
            yield group
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not _COLLECTIVE.search(text):
            raise
        if isinstance(error, dist.DistNetworkError) or _LOST.search(text):
            raise LostProcess(
                f"another process of the run is gone or hangs ({text.splitlines()[0]})",
                where=f"process {place.rank}",
                hint="see what it said last; the same command resumes from the last checkpoint",
            ) from error
        raise SetupError(
            f"the processes of the run cannot talk to each other: {text}",
            where=f"process {place.rank}",
            hint="mend what it says, or train with one process; NCCL_DEBUG=INFO has NCCL say more",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
