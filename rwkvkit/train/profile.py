"""Records a few steps with torch's profiler: a trace to look at, and the largest operators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rwkvkit.files import replacing
from rwkvkit.train.observe import StepReport

_WARMUP = 3  # steps that allocate, compile and fill caches
_SHOWN = 10
TRACE = "trace.json"


class Profile:
    """A sink that records ``steps`` steps after a few others, everything between them included.

    Args:
        steps: how many to record.
        folder: ``trace.json`` goes there, for chrome://tracing or https://ui.perfetto.dev.
        report: takes the ten operators that took most time of their own.
    """

    def __init__(self, steps: int, folder: Path, report: Callable[[str], None]) -> None:
        self._left = _WARMUP + steps
        self._steps = steps
        self._folder = folder
        self._report = report
        self._profiler: profile | None = None

    def __call__(self, now: StepReport) -> None:
        """Take the report of a step."""
        self._left -= 1
        if self._left == self._steps:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu], acc_events=True)
            self._profiler.start()
        elif self._left == 0:
            self.close()

    def close(self) -> None:
        """End the recording, if one runs, and write what it has."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        steps = self._steps - max(self._left, 0)
        if steps == 0:  # the run ended right after the warm-up
            return
        path = self._folder / TRACE
        with replacing(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        self._report(f"profile: {steps} steps in {path}; the largest operators by their own time:")
        for line in largest(profiler.key_averages(), steps):
            self._report(f"  {line}")


def largest(averages: Any, steps: int) -> list[str]:
    """Return a line for each of the ten operators with the most time of their own.

    Args:
        averages: ``key_averages()`` of a profiler.
        steps: recorded, over which times are shared out.
    """
    on_gpu = any(event.self_device_time_total for event in averages)

    def own(event: Any) -> float:
        time: float = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return time

    whole = sum(map(own, averages)) or 1.0
    first = sorted(averages, key=own, reverse=True)[:_SHOWN]
    where = "GPU" if on_gpu else "CPU"
    return [
        f"{own(event) / whole:6.1%}  {own(event) / steps / 1e3:9.3f} ms {where} a step  "
        f"{event.count / steps:8.0f} calls  {event.key}"
        for event in first
        if own(event) > 0
    ]
