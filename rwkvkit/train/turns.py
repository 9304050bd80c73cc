"""What the processes of a run wait for without a collective, however long it takes."""

import contextlib
import threading
import time
from collections.abc import Iterator

from torch.distributed import DistError, Store

from rwkvkit.errors import FailedElsewhere, LostProcess, RwkvkitError

_FAILURE_SECONDS = 10.0
_BEAT_SECONDS = 10.0
_SILENCE_SECONDS = 300.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks at the store


class Turns:
    """Lets processes wait for each other's work by keys of the store they met at.

    Every use of ``first`` and of ``together`` has a number, the same in every process as all use
    them in the same order. Rank 0 sets ``turn/N`` to its exit code at the end of a ``first``. At
    the end of a ``together`` each process counts up ``ended/N``; one that has failed sets
    ``failed/N`` to its exit code before.

    Work has no limit: rank 0 may prepare, write or hash for hours. Once one has failed, the others
    have ten seconds to come to their end, for they may wait for it in the body. A process that dies
    is the launcher's to notice; but that of another machine may not know of this one (``--nodes``).
    So each counts up ``beat/RANK``, and who waits in a ``together`` ends, within ten minutes, when
    one has not done so for five. In a ``first`` the others wait 14 days, or until the store is
    gone, which rank 0 holds.

    Args:
        store: of all processes.
        rank: number of this process.
        world: how many there are.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._number = 0

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life while in the context."""
        left = threading.Event()

        def beat() -> None:
            with contextlib.suppress(DistError):  # without the store nobody listens
                while not left.wait(_BEAT_SECONDS):
                    self._store.add(f"beat/{self._rank}", 1)

        thread = threading.Thread(target=beat, name="signs-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join(_FAILURE_SECONDS)  # longer if the store's machine is gone

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """See ``Group.first``."""
        self._number += 1
        turn = f"turn/{self._number}"
        if self._rank > 0:
            pause = _SHORTEST_PAUSE
            while not self._store.check([turn]):  # in Python, which hears signals meanwhile
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
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
        self._number += 1
        failed, ended = f"failed/{self._number}", f"ended/{self._number}"
        if failure is not None:
            code = getattr(failure, "exit_code", RwkvkitError.exit_code)
            with contextlib.suppress(DistError):
                self._store.set(failed, str(code))
                self._store.add(ended, 1)
                self._wait(ended, failed)
            raise failure
        self._store.add(ended, 1)
        self._wait(ended, failed)
        if self._store.check([failed]):
            raise FailedElsewhere(int(self._store.get(failed)))

    def _wait(self, ended: str, failed: str) -> None:
        """Wait until all have ended, or one has failed and the others had time to end.

        Raises:
            LostProcess: one gives no sign of life.
        """
        heard: list[int] = []
        looked, deadline, pause = time.monotonic(), None, _SHORTEST_PAUSE
        while self._store.add(ended, 0) < self._world:
            now = time.monotonic()
            if deadline is None and self._store.check([failed]):
                deadline = now + _FAILURE_SECONDS
            if deadline is not None and now > deadline:
                return
            if now - looked > _SILENCE_SECONDS:
                heard, looked = self._listen(heard), now
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _listen(self, before: list[int]) -> list[int]:
        """Return the signs of life of each process; see that they are more than before."""
        heard = [self._store.add(f"beat/{rank}", 0) for rank in range(self._world)]
        silent = [rank for rank, beats in enumerate(before) if beats == heard[rank]]
        if silent:
            raise LostProcess(
                f"process {silent[0]} of the run gives no sign of life",
                where=f"process {self._rank}",
                hint="see what it said last; the same command resumes from the last checkpoint",
            )
        return heard
