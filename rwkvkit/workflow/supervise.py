"""Watch what makes up a run, end it together, and find what failed first."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from rwkvkit.errors import (
    FailedElsewhere,
    InterruptedRun,
    LostProcess,
    RwkvkitError,
    StoppedAtOnce,
)

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # for the others to end by themselves after one has failed or died
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Member(Protocol):
    """A process of a run, or a machine that runs several.

    Attributes:
        name: what people call it.
    """

    name: str

    @property
    def code(self) -> int | None:
        """The exit status; None while it runs."""

    def send(self, number: int) -> None:
        """Pass a signal on; SIGKILL ends it without a save."""

    def kill(self) -> None:
        """End it and all that it has started, and wait for that."""

    def error(self) -> RwkvkitError:
        """Return why it ended with another status than 0."""

    def last_words(self) -> str:
        """Return the end of what it wrote, as far as nobody has seen it."""


def supervise(members: Iterable[Member], report: Callable[[str], None]) -> None:
    """Wait until all members have ended; when one fails the others are ended.

    SIGINT, SIGTERM and SIGHUP ask all of them to save and end, which may take as long as a step
    and a save take; a second signal kills them.

    Args:
        members: are started by going through them.
        report: takes lines for people.

    Raises:
        RwkvkitError: the error of the first member that failed.
    """
    started: list[Member] = []
    with _signals_to(started) as interrupted:
        try:
            for member in members:
                started.append(member)
                if interrupted:
                    break
            for member in started if interrupted else ():  # it may have missed the last one
                member.send(signal.SIGTERM)
            _watch(started, interrupted)
            first = _first_failure(started)  # before those that hang are killed here
        finally:
            for member in started:
                member.send(signal.SIGKILL)
            for member in started:
                member.kill()
    if first is None:
        return
    error = first.error()
    if interrupted and not isinstance(error, InterruptedRun):
        report(f"{first.name}: {error.what}")
        error = InterruptedRun("stopped before the end", hint="run the same command to continue")
    if (words := first.last_words()) and error.exit_code == RwkvkitError.exit_code:
        report(words)
    raise error


def _watch(members: Sequence[Member], interrupted: Sequence[int]) -> None:
    """Wait until all have ended well, or one has not and the others have had time to end.

    One that has ended because the user asked to is no failure: the others may still be saving.
    Unless it was stopped outside the training loop, where they do not save but may wait for it.
    """
    deadline = None

    def failed(member: Member) -> bool:
        if interrupted and member.code == InterruptedRun.exit_code:
            return isinstance(member.error(), StoppedAtOnce)
        return member.code not in (None, 0)

    while any(member.code is None for member in members):
        if any(failed(member) for member in members):
            deadline = deadline or time.monotonic() + _GRACE_SECONDS
            if time.monotonic() > deadline:
                return
        time.sleep(_POLL_SECONDS)


def _first_failure(members: Sequence[Member]) -> Member | None:
    """Return the first member whose failure is the cause, not a consequence."""
    failed = [member for member in members if member.code]

    def is_consequence(member: Member) -> bool:
        return isinstance(member.error(), LostProcess | FailedElsewhere)

    return min(failed, key=is_consequence, default=None)


@contextmanager
def _signals_to(members: Sequence[Member]) -> Iterator[list[int]]:
    """Pass signals on to the members while in the context; yields those that came."""
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        # A lost terminal is a request to stop as well, and the training loop knows these two.
        asked = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        for member in members:
            if member.code is None:
                member.send(asked if len(came) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
