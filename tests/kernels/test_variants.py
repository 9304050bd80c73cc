"""The section of the GPU check that times kernels in other shapes, its launches emulated."""

import argparse
import importlib
from pathlib import Path

from rwkvkit.ops.cuda import launch


def test_every_variant_runs(emulators, monkeypatch):
    launched = []

    def start(program, kernel, *rest):
        launched.append(program)
        emulators(program).launch(kernel, *rest)

    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    section = importlib.import_module("gpu_variants")
    rows = list(section.variants(argparse.Namespace(device="cpu", tiny=True)))
    assert all(row["ok"] for row in rows), rows
    backward = {program for program in launched if program.file.endswith("_backward.cu")}
    assert len(rows) == 2 * len(backward) == 2 * (len(section._WKV7) + len(section._WKV6))
