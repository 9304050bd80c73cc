"""How ``gpu_check.py`` times what it runs."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Row = dict[str, Any]
"""A line of the table; ``ok`` False marks what is wrong."""


def timed(run: Callable[[], object], settings: argparse.Namespace) -> Row:
    """Median milliseconds, the peak of memory, or what went wrong."""
    try:
        for _ in range(1 if settings.tiny else 3):
            run()
        if settings.device != "cuda":
            start = time.perf_counter()
            run()
            return {"ms": 1e3 * (time.perf_counter() - start), "ok": True}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(10):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)  # about a millisecond, for launches to run ahead
            before.record()
            run()
            after.record()
            torch.cuda.synchronize()
            times.append(before.elapsed_time(after))
        peak = torch.cuda.max_memory_allocated() / 1e9
        return {"ms": statistics.median(times), "spread_ms": max(times) - min(times)} | {
            "peak_gb": peak,
            "ok": True,
        }
    except Exception as error:
        if settings.device == "cuda":
            with contextlib.suppress(Exception):  # after a fault nothing works
                torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {error}"[:400], "ok": False}
