"""Section of ``gpu_check.py``: compute-sanitizer, on faults that it must see and on the kernels."""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_process import run_within
from gpu_timing import Row

_TOOLKIT = "/usr/local/cuda/bin/compute-sanitizer"
_OPTIONS = (
    *("--error-exitcode", "9"),  # where the process itself succeeds; else its own code
    *("--destroy-on-device-error", "kernel"),  # and it can: a fault ends its kernel alone
    # Packages ask the driver for functions that it may not have, and go on without.
    *("--report-api-errors", "no"),
    # Torch's own kernels, whose names C++ has mangled; ours are named as in C.
    *("--kernel-name-exclude", "kns=_Z"),
    *("--launch-timeout", "120"),
)
# Within a segment of torch's allocator no access would be out of bounds.
_ENVIRONMENTS = {"memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "racecheck": {}}
_PLANTED = {"memcheck": "planted write", "racecheck": "planted race"}
_SHARES = (2, 3)  # of the time that is left: planted fault, small cases
_FAULTS = """
extern "C" __global__ void planted_write(int *to) { to[threadIdx.x + (1 << 20)] = 1; }
extern "C" __global__ void planted_race(int *to) {
    __shared__ int x[64];
    x[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = x[63 - threadIdx.x];
}
"""


def sanitizer(settings: argparse.Namespace) -> Iterator[Row]:
    """Run a planted fault, then the small cases, with either tool."""
    program = shutil.which("compute-sanitizer") or shutil.which(_TOOLKIT)
    if program is None:
        text = "not on PATH: CUDA toolkit has it"
        yield {"what": "compute-sanitizer", "ok": False, "output": text}
        return
    script = Path(__file__).with_name("gpu_check.py")
    until = time.monotonic() + settings.limit
    runs = [(tool, section) for tool in _PLANTED for section in (_PLANTED[tool], "small cases")]
    shares = _SHARES * len(_PLANTED)
    for number, (tool, section) in enumerate(runs):
        command = [program, "--tool", tool, *_OPTIONS, sys.executable, str(script)]
        command += ["--section", section, "--launch-only"]
        start = time.monotonic()
        share = shares[number] / sum(shares[number:])
        done = run_within((until - start) * share, command, _ENVIRONMENTS[tool])
        # What was found counts, not the exit code: a process that fails gives its own.
        summary = re.search(r"SUMMARY: (\d+)", done.output)
        found = int(summary.group(1)) if summary else None
        ok = bool(found) if section == _PLANTED[tool] else done.ok and found == 0
        row = {"what": f"{tool}, {section}", "seconds": time.monotonic() - start, "ok": ok}
        yield row if ok else row | {"output": done.said()}


def planted_write(settings: argparse.Namespace) -> Iterator[Row]:
    """Write far beyond a tensor."""
    return _planted("planted_write", settings)


def planted_race(settings: argparse.Namespace) -> Iterator[Row]:
    """Read in shared memory what another warp writes, without a barrier."""
    return _planted("planted_race", settings)


def _planted(name: str, settings: argparse.Namespace) -> Iterator[Row]:
    from cuda.core import Device, LaunchConfig, Program, ProgramOptions, Stream, launch

    from rwkvkit.ops.cuda.launch import architecture

    to = torch.zeros(64, dtype=torch.int32, device=settings.device)
    Device(0).set_current()
    options = ProgramOptions(arch=architecture(0))
    kernel = Program(_FAULTS, "c++", options).compile("cubin").get_kernel(name)
    stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
    launch(stream, LaunchConfig(grid=1, block=64), kernel, to.data_ptr())
    torch.cuda.synchronize()
    yield {"what": name, "ok": True}
