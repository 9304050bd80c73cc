"""Run a process, and what it starts in its session, for so long and no longer."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """How a process ended.

    Attributes:
        code: its exit code, negative for a signal; None: the time was over.
        output: what it wrote, both streams together.
        seconds: the time it had.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        """It ended by itself, with success."""
        return self.code == 0

    def said(self) -> str:
        """The end of its output, and how it ended, for a person."""
        how = f"exit code {self.code}" if self.code is not None else "not done"
        return f"{self.output[-2000:].rstrip()}\n{how} after at most {self.seconds:.0f} s".strip()


def run_within(
    seconds: float, command: Sequence[str], environment: dict[str, str] | None = None
) -> Done:
    """Run a command; when its time is over, end it with its children.

    Not with those that have a session of their own, as :func:`run_within` gives one: a process that
    calls it needs more time than it allows.

    Args:
        seconds: it may take.
        command: and its arguments.
        environment: variables in addition to this process's.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
        code: int | None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return Done(code, output.read(), seconds)
