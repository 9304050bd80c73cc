"""Turn Ctrl-C and SIGTERM into a request that the training loop honours after its step."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets ``name``; a second one interrupts.

    Outside the main thread, where Python cannot take signals, it does nothing.

    Attributes:
        name: the signal that asked to stop, such as ``SIGTERM``, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
