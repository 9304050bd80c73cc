"""A machine of a run, reached over ssh; ``cli.node`` is what runs there.

The connection's stdin carries orders, a line each: what to start, then signals, and every few
seconds a sign of life. Its end, or silence, ends whatever was started, so nothing outlives the
connection. Its stderr carries lines for people and, marked, what the launcher has to know.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rwkvkit import errors
from rwkvkit.errors import FailedElsewhere, LostProcess, RwkvkitError, SetupError

MARK = "\x1erwkvkit "
"""What a line of stderr begins with that is meant for the launcher."""
SILENCE_SECONDS = 40.0
"""After that long without a sign of life a machine takes the launcher for lost."""
_BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 45.0  # to connect and to start Python, perhaps from a slow file system
_FAREWELL_SECONDS = 10.0  # to kill what runs there once its stdin is closed
_TAIL_LINES = 5
_OPTIONS = {
    "BatchMode": "yes",  # fail rather than ask
    "ConnectTimeout": "20",
    "ControlPath": "none",  # a shared connection has a life of its own
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
}
_CONNECTION_FAILED = 255  # ssh's own status
# What differs between users and clusters, not between the machines of one run.
_PASSED_ON = ("NCCL_", "GLOO_", "OMP_", "TORCH_", "HF_", "WANDB_")


class Remote:
    """A machine on which ``cli.node`` starts and watches processes; a ``Member``.

    Args:
        host: what ssh is given.
        report: takes lines for people.
        shown: whether what it writes to stdout is the result that people see.
    """

    def __init__(self, host: str, report: Callable[[str], None], *, shown: bool) -> None:
        self.name = f"host {host}"
        self.port = 0
        self._host, self._report = host, report
        self._answered, self._closed = threading.Event(), threading.Event()
        self._words: deque[str] = deque(maxlen=_TAIL_LINES)
        self._error: RwkvkitError | None = None
        self._cut_off = False  # by this side, while it ran
        options = [f"-o{key}={value}" for key, value in _OPTIONS.items()]
        try:
            self._process = subprocess.Popen(
                ["ssh", "-T", *options, host, _command()],
                stdin=subprocess.PIPE,
                stdout=None if shown else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is passed on, not shared
            )
        except FileNotFoundError as error:
            raise SetupError(
                "there is no program of this name",
                where="ssh",
                hint="install OpenSSH's client here, or start each host's processes by --nodes",
            ) from error
        assert self._process.stdin
        assert self._process.stderr
        self._orders = self._process.stdin
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stderr,), daemon=True
        )
        self._reader.start()

    @property
    def code(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def answered(self) -> bool:
        """Whether Python runs there, and ``port`` is known."""
        return self._answered.is_set()

    def give_up(self, *, late: bool) -> None:
        """Close the connection before anything was started, unless it has failed by itself."""
        if late and not self.answered:
            self._error = SetupError(
                f"did not answer within {_ANSWER_SECONDS:.0f} seconds",
                where=self._host,
                hint=f"see how long `ssh {self._host} {sys.executable} --version` takes",
            )
        if self.code is None:
            self.kill()

    def begin(self, work: dict[str, Any]) -> None:
        """Have it start processes.

        Args:
            work: ``launch`` and ``arguments``, see ``cli.node``.
        """
        passed = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        self._order(json.dumps(work | {"environment": passed}))
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, number: int) -> None:
        """Pass a signal on; SIGKILL closes the connection."""
        if number == signal.SIGKILL:
            self._cut_off = self._cut_off or self.code is None
            self._closed.set()
            with suppress(OSError):
                self._orders.close()
        else:
            self._order(signal.Signals(number).name)

    def kill(self) -> None:
        """Close the connection, upon which everything there is killed."""
        self.send(signal.SIGKILL)
        try:
            self._process.wait(_FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def error(self) -> RwkvkitError:
        """Return why it ended."""
        self._reader.join(_FAREWELL_SECONDS)
        if self._error:
            return self._error
        if self._cut_off:
            return LostProcess("the launcher has closed the connection", where=self._host)
        if self.answered:
            return SetupError(
                "the connection was lost",
                where=self._host,
                hint="the same command resumes from the last checkpoint",
            )
        said = f": {self._words[-1]}" if self._words else ""
        if self.code == _CONNECTION_FAILED:
            return SetupError(
                f"ssh cannot reach it{said}",
                where=self._host,
                hint=f"`ssh -o BatchMode=yes {self._host} true` must work without a password",
            )
        return SetupError(
            f"rwkvkit did not start there{said}",
            where=self._host,
            hint=f"{sys.executable} with rwkvkit and the folder {Path.cwd()} must be there too",
        )

    def last_words(self) -> str:
        """Return nothing: all of it has been shown."""
        return ""

    def _order(self, line: str) -> None:
        # In one piece, since the sign of life comes from another thread.
        with suppress(OSError, ValueError):  # it has ended: its status says why
            os.write(self._orders.fileno(), f"{line}\n".encode())

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            self._order("")

    def _read(self, stderr: BinaryIO) -> None:
        for raw in stderr:
            line = raw.decode(errors="replace").rstrip()
            if not line:
                continue
            if not line.startswith(MARK):
                self._words.append(line)
                self._report(f"{self._host}: {line}")
                continue
            fact = json.loads(line.removeprefix(MARK))
            if "port" in fact:
                self.port = fact["port"]
                self._answered.set()
            else:
                self._error = read_error(fact["error"], self._host)


def meet(remotes: Sequence[Remote]) -> bool:
    """Wait until all have answered; when one does not, give all of them up and return False."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not all(remote.answered for remote in remotes):
        late = time.monotonic() > deadline
        if late or any(remote.code is not None for remote in remotes):
            for remote in remotes:
                remote.give_up(late=late)
            return False
        time.sleep(_POLL_SECONDS)
    return True


def write_error(error: RwkvkitError) -> dict[str, Any]:
    """Return an error as JSON has it; unlike a pickle it runs nothing when it is read."""
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def read_error(fact: dict[str, Any], host: str) -> RwkvkitError:
    """Return the error that ``write_error`` described; what a machine lacks names the machine."""
    if fact["kind"] == FailedElsewhere.__name__:
        return FailedElsewhere(fact["exit_code"])
    kind = getattr(errors, fact["kind"], RwkvkitError)
    where = fact["where"]
    if issubclass(kind, SetupError):
        where = f"{host}: {where}" if where else host
    error: RwkvkitError = kind(fact["what"], where=where, hint=fact["hint"])
    return error


def _command() -> str:
    """Return what the shell there runs: this folder, this Python, this rwkvkit."""
    words = [sys.executable, "-m", "rwkvkit.cli.node"]
    if path := os.environ.get("PYTHONPATH"):
        words = ["env", f"PYTHONPATH={path}", *words]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"
