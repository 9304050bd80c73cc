"""Section of ``gpu_check.py``: compute-sanitizer, on faults that it must see and on the kernels."""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_process import run_within
from gpu_timing import Row

_TOOLKIT = "/usr/local/cuda/bin/compute-sanitizer"
_FAULTS_FOUND = 9
_OPTIONS = (
    *("--error-exitcode", str(_FAULTS_FOUND)),
    # Packages ask the driver for functions that it may not have, and go on without.
    *("--report-api-errors", "no"),
    # Torch's own kernels, whose names C++ has mangled; ours are named as in C.
    *("--kernel-name-exclude", "kns=_Z"),
    *("--launch-timeout", "120"),
)
# Within a segment of torch's allocator no access would be out of bounds.
_ENVIRONMENTS = {"memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "racecheck": {}}
_SHARES = {"planted faults": 2, "small cases": 3}  # of the time that is left
_FAULTS = """
extern "C" __global__ void planted(int *to, int beyond) {
    __shared__ int x[64];
    x[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = x[63 - threadIdx.x];
    to[threadIdx.x + beyond] = 1;
}
"""


def sanitizer(settings: argparse.Namespace) -> Iterator[Row]:
    """Run planted faults, then the small cases, with either tool."""
    program = shutil.which("compute-sanitizer") or shutil.which(_TOOLKIT)
    if program is None:
        text = "not on PATH: CUDA toolkit has it"
        yield {"what": "compute-sanitizer", "ok": False, "output": text}
        return
    script = Path(__file__).with_name("gpu_check.py")
    until = time.monotonic() + settings.limit
    runs = [(tool, section) for tool in _ENVIRONMENTS for section in _SHARES]
    for number, (tool, section) in enumerate(runs):
        command = [program, "--tool", tool, *_OPTIONS, sys.executable, str(script)]
        command += ["--section", section, "--launch-only"]
        start = time.monotonic()
        share = _SHARES[section] / sum(_SHARES[name] for _, name in runs[number:])
        done = run_within((until - start) * share, command, _ENVIRONMENTS[tool])
        ok = done.ok if section == "small cases" else done.code == _FAULTS_FOUND
        row = {"what": f"{tool}, {section}", "seconds": time.monotonic() - start, "ok": ok}
        yield row if ok else row | {"output": done.said()}


def planted_faults(settings: argparse.Namespace) -> Iterator[Row]:
    """Race in shared memory and write far beyond a tensor."""
    import numpy as np
    from cuda.core import Device, LaunchConfig, Program, ProgramOptions, Stream, launch

    from rwkvkit.ops.cuda.launch import architecture

    to = torch.zeros(64, dtype=torch.int32, device=settings.device)
    Device(0).set_current()
    options = ProgramOptions(arch=architecture(0))
    kernel = Program(_FAULTS, "c++", options).compile("cubin").get_kernel("planted")
    stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
    beyond = np.int32(1 << 20)
    launch(stream, LaunchConfig(grid=1, block=64), kernel, to.data_ptr(), beyond)
    torch.cuda.synchronize()
    yield {"what": "planted faults", "ok": True}
