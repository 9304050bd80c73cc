"""Start the processes of a run on this machine, watch them, and end them together."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from rwkvkit.errors import (
    FailedElsewhere,
    InterruptedRun,
    LostProcess,
    RwkvkitError,
    SetupError,
    UsageError,
)
from rwkvkit.train.place import Place

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # for the others to end by themselves after one has failed or died
_TAIL_LINES = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Launch:
    """The processes to start.

    Attributes:
        processes: on this machine; 0: none, the command itself trains.
        on_gpus: whether each needs a GPU of its own.
        nodes: machines.
        node_rank: number of this machine, from 0.
        master: ``host:port`` where all meet; on a single machine one is found.
    """

    processes: int = 0
    on_gpus: bool = False
    nodes: int = 1
    node_rank: int = 0
    master: str | None = None

    @classmethod
    def of(
        cls,
        gpus: int | None,
        processes: int | None,
        nodes: int | None,
        node_rank: int | None,
        master: str | None,
    ) -> "Launch":
        """Check the options of the command line.

        Raises:
            UsageError: they contradict each other, or too few are given.
        """
        if gpus and processes:
            raise UsageError("--gpus and --processes both say how many processes: give one")
        several = nodes is not None and nodes > 1
        if (several or node_rank is not None or master) and not (gpus or processes):
            raise UsageError(
                "several machines, but not how many processes on each",
                hint="add --gpus N, or --processes N on a CPU",
            )
        if several and (node_rank is None or master is None):
            raise UsageError(
                f"--nodes {nodes} needs --node-rank and --master",
                hint="on the first machine: --node-rank 0 --master FIRST_HOST:29500",
            )
        if node_rank is not None and not 0 <= node_rank < (nodes or 1):
            raise UsageError(f"--node-rank {node_rank} is not one of {nodes or 1} machines, from 0")
        if master is not None and not master.rpartition(":")[2].isdigit():
            raise UsageError(f"--master {master} has no port", hint="say --master HOST:29500")
        return cls(gpus or processes or 0, bool(gpus), nodes or 1, node_rank or 0, master)

    @property
    def world(self) -> int:
        """Processes on all machines, those of this command included."""
        return max(1, self.processes) * self.nodes


def start(launch: Launch, arguments: Sequence[str], report: Callable[[str], None]) -> None:
    """Run a command in several processes that train together, and wait for their end.

    All end together: when one fails the others are ended, and they die with this process. SIGINT,
    SIGTERM and SIGHUP ask all of them to save and end, which may take as long as a step and a save
    take; a second signal kills them. Rank 0 writes to the terminal; the last words of another one
    are shown if it is the one that failed.

    Args:
        launch: how many, and where.
        arguments: of the command.
        report: takes lines for people.

    Raises:
        SetupError: there are fewer GPUs, or a process was killed.
        RwkvkitError: the error of the first process that failed.
    """
    if launch.on_gpus:
        import torch

        if torch.cuda.device_count() < launch.processes:
            raise SetupError(
                f"torch sees {torch.cuda.device_count()} GPUs, not {launch.processes}",
                where="--gpus",
                hint="ask for as many as there are; --processes N trains on the CPU",
            )
    master = launch.master or f"127.0.0.1:{_free_port()}"
    with tempfile.TemporaryDirectory(prefix="rwkvkit-") as folder:
        ranks: list[_Rank] = []
        with _signals_to(ranks) as interrupted:
            try:
                for local in range(launch.processes):
                    rank = launch.node_rank * launch.processes + local
                    place = Place(rank, launch.world, local, master, "rwkvkit")
                    ranks.append(_Rank(place, arguments, Path(folder)))
                _watch(ranks, interrupted)
                first = _first_failure(ranks)  # before those that hang are killed here
            finally:
                for each in ranks:
                    each.kill()
        if first is None:
            return
        error = first.error()
        if interrupted and not isinstance(error, InterruptedRun):
            report(f"process {first.rank}: {error.what}")
            error = InterruptedRun("interrupted; run the same command to go on")
        if (words := first.last_words()) and error.exit_code == RwkvkitError.exit_code:
            report(words)
        raise error


class _Rank:
    """A process of the run, in a process group of its own with whatever it starts."""

    def __init__(self, place: Place, arguments: Sequence[str], folder: Path) -> None:
        self.rank = place.rank
        self._error = folder / f"error-{place.rank}"
        self._stderr = folder / f"stderr-{place.rank}"
        self._master = place.master
        command = [sys.executable, "-m", "rwkvkit.cli.worker", str(os.getpid())]
        command += [str(self._error), json.dumps(asdict(place)), *arguments]
        shown = place.rank == 0
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if shown else subprocess.DEVNULL,
                stderr=None if shown else stderr,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Pass a signal on."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the process and all that it has started."""
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def error(self) -> RwkvkitError:
        """Return why it ended."""
        if self._error.exists() and (content := self._error.read_bytes()):
            error: RwkvkitError = pickle.loads(content)
            return error
        code = self.code or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        words = self.last_words().rpartition("\n")[2]
        return SetupError(
            f"process {self.rank} of the run {how}" + (f" after saying: {words}" if words else ""),
            where=self._master,
            hint="SIGKILL often means that memory ran out; the same command resumes from the "
            "last checkpoint",
        )

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr; empty for the one that was shown."""
        text = self._stderr.read_text(encoding="utf-8", errors="replace").strip()
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _watch(ranks: Sequence[_Rank], interrupted: Sequence[int]) -> None:
    """Wait until all have ended well, or one has not and the others have had time to end.

    One that has ended because the user asked to is no failure: the others may still be saving.
    """
    deadline = None
    while any(rank.code is None for rank in ranks):
        well = (None, 0, InterruptedRun.exit_code) if interrupted else (None, 0)
        if any(rank.code not in well for rank in ranks):
            deadline = deadline or time.monotonic() + _GRACE_SECONDS
            if time.monotonic() > deadline:
                return
        time.sleep(_POLL_SECONDS)


def _first_failure(ranks: Sequence[_Rank]) -> _Rank | None:
    """Return the process whose failure is the cause, not a consequence."""
    failed = [rank for rank in ranks if rank.code]

    def is_consequence(rank: _Rank) -> bool:
        return isinstance(rank.error(), LostProcess | FailedElsewhere)

    return min(failed, key=lambda rank: (is_consequence(rank), rank.rank), default=None)


@contextmanager
def _signals_to(ranks: Sequence[_Rank]) -> Iterator[list[int]]:
    """Pass signals on to the processes while in the context; yields those that came."""
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        # A lost terminal is a request to stop as well, and the training loop knows these two.
        asked = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        for rank in ranks:
            if rank.code is None:
                rank.send(asked if len(came) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
