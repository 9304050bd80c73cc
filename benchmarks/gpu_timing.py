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


_SECONDS = 3.0  # a case may take, about


def timed(run: Callable[[], object], settings: argparse.Namespace, *, ahead: bool = True) -> Row:
    """Median milliseconds, the peak of memory, or what went wrong.

    Args:
        run: what is timed.
        settings: of the check.
        ahead: let launches run ahead of the GPU by a millisecond; for work that never waits for it.
    """
    try:
        if settings.device != "cuda":
            run()
            start = time.perf_counter()
            run()
            return {"ms": 1e3 * (time.perf_counter() - start), "ok": True}
        for _ in range(2):  # the first compiles and allocates
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
        repeats = max(3, min(10, int(_SECONDS / (time.perf_counter() - start))))
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if ahead:
                torch.cuda._sleep(2_000_000)
            before.record()
            run()
            after.record()
            torch.cuda.synchronize()
            times.append(before.elapsed_time(after))
        return {
            "ms": statistics.median(times),
            "spread_ms": max(times) - min(times),
            "repeats": repeats,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,  # recorded passes too
            "ok": True,
        }
    except Exception as error:
        if settings.device == "cuda":
            with contextlib.suppress(Exception):  # after a fault nothing works
                torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {error}"[:400], "ok": False}
