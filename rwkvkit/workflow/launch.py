"""Start the processes of a run, on this machine or over ssh, and end them together."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rwkvkit.errors import RwkvkitError, SetupError, UsageError
from rwkvkit.resources import cores
from rwkvkit.train.place import Place
from rwkvkit.workflow.hostfile import Host, read_hostfile
from rwkvkit.workflow.remote import Remote, meet
from rwkvkit.workflow.supervise import supervise

_TAIL_LINES = 15


@dataclass(frozen=True)
class Launch:
    """The processes to start.

    Attributes:
        processes: on this machine; 0: none, the command itself trains.
        on_gpus: whether each needs a GPU of its own.
        first_rank: rank of the first process on this machine.
        elsewhere: processes on other machines.
        master: ``host:port`` where all meet; found unless given.
        hosts: the machines to reach over ssh; this one then starts no process itself.
    """

    processes: int = 0
    on_gpus: bool = False
    first_rank: int = 0
    elsewhere: int = 0
    master: str | None = None
    hosts: tuple[Host, ...] = ()

    @classmethod
    def of(
        cls,
        gpus: int | None,
        processes: int | None,
        nodes: int | None,
        node_rank: int | None,
        master: str | None,
        hostfile: Path | None = None,
    ) -> "Launch":
        """Check the options of the command line.

        Raises:
            UsageError: they contradict each other, or too few are given.
        """
        if master is not None:
            host, _, port = master.rpartition(":")
            if not host or not port.isdigit():
                lacks = "host" if port.isdigit() else "port"
                raise UsageError(
                    f"--master {master} has no {lacks}", hint="say --master HOST:29500"
                )
        if hostfile:
            given = {"--gpus": gpus, "--processes": processes, "--nodes": nodes}
            given["--node-rank"] = node_rank
            if extra := [option for option, value in given.items() if value is not None]:
                raise UsageError(
                    f"--hostfile says it all, and {extra[0]} is given too",
                    hint=f"leave {extra[0]} out; the slots are the processes of each host",
                )
            return cls._on(read_hostfile(hostfile), master, str(hostfile))
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
        each = gpus or processes or 0
        before, others = (node_rank or 0) * each, ((nodes or 1) - 1) * each
        return cls(each, bool(gpus), before, others, master)

    @classmethod
    def _on(cls, hosts: tuple[Host, ...], master: str | None, where: str) -> "Launch":
        if not master and hosts[0].is_loopback and not all(host.is_loopback for host in hosts):
            raise UsageError(
                f"the processes meet on the first host, and others cannot reach {hosts[0].name}",
                where=where,
                hint="name it as the other hosts know it, or say --master HOST:29500",
            )
        return cls(master=master, hosts=hosts)

    @property
    def world(self) -> int:
        """Processes on all machines, those of this command included."""
        if self.hosts:
            return sum(host.slots for host in self.hosts)
        return max(1, self.processes) + self.elsewhere


def start(launch: Launch, arguments: Sequence[str], report: Callable[[str], None]) -> None:
    """Run a command in several processes that train together, and wait for their end.

    All end together, see ``supervise``, and they die with this process. Rank 0 writes to the
    terminal; the last words of another one are shown if it is the one that failed.

    Args:
        launch: how many, and where.
        arguments: of the command.
        report: takes lines for people.

    Raises:
        SetupError: there are fewer GPUs, a host cannot be reached, or a process was killed.
        RwkvkitError: the error of the first process that failed.
    """
    if launch.hosts:
        supervise(_hosts(launch, arguments, report), report)
        return
    if launch.on_gpus:
        import torch

        if torch.cuda.device_count() < launch.processes:
            raise SetupError(
                f"torch sees {torch.cuda.device_count()} GPUs, not {launch.processes}",
                where="GPUs",
                hint="ask for as many as there are; to train on the CPU say --processes N, or "
                "train.device: cpu beside a hostfile",
            )
    with tempfile.TemporaryDirectory(prefix="rwkvkit-") as folder:
        supervise(_ranks(launch, arguments, Path(folder)), report)


def _ranks(launch: Launch, arguments: Sequence[str], folder: Path) -> Iterator["_Rank"]:
    """Start the processes on this machine."""
    master = launch.master or f"127.0.0.1:{free_port()}"
    # Threads that outnumber the cores wait for each other; each process would take a thread a core.
    threads = str(max(1, cores() // launch.processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    for local in range(launch.processes):
        place = Place(launch.first_rank + local, launch.world, local, master, "rwkvkit")
        yield _Rank(place, arguments, folder, environment)


def _hosts(
    launch: Launch, arguments: Sequence[str], report: Callable[[str], None]
) -> Iterator[Remote]:
    """Reach all hosts, and have each start its processes when all have answered."""
    remotes = []
    for number, host in enumerate(launch.hosts):
        remotes.append(Remote(host.name, report, shown=number == 0))
        yield remotes[-1]
    if not meet(remotes):
        return
    master = launch.master or f"{launch.hosts[0].address}:{remotes[0].port}"
    first_rank = 0
    for host, remote in zip(launch.hosts, remotes, strict=True):
        elsewhere = launch.world - host.slots
        here = Launch(host.slots, launch.on_gpus, first_rank, elsewhere, master)
        remote.begin({"launch": asdict(here), "arguments": list(arguments)})
        first_rank += host.slots


class _Rank:
    """A process of the run, in a process group of its own with whatever it starts."""

    def __init__(
        self, place: Place, arguments: Sequence[str], folder: Path, environment: dict[str, str]
    ) -> None:
        self.name, self._rank = f"process {place.rank}", place.rank
        self._error = folder / f"error-{place.rank}"
        self._stderr = folder / f"stderr-{place.rank}"
        self._master = place.master
        command = [sys.executable, "-m", "rwkvkit.cli.worker", str(os.getpid())]
        command += [str(self._error), json.dumps(asdict(place)), *arguments]
        shown = place.rank == 0
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                env=environment,
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
            f"process {self._rank} of the run {how}" + (f" after saying: {words}" if words else ""),
            where=self._master,
            hint="SIGKILL often means that memory ran out; the same command resumes from the "
            "last checkpoint",
        )

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr; empty for the one that was shown."""
        text = self._stderr.read_text(encoding="utf-8", errors="replace").strip()
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
