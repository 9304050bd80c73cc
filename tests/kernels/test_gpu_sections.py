"""Sections of the GPU check, with what they launch emulated."""

import argparse
import importlib
from pathlib import Path

import pytest
from torch import Tensor

from rwkvkit.ops import inputs
from rwkvkit.ops.cuda import launch
from rwkvkit.ops.inputs import Choice


@pytest.fixture
def launched(emulators, monkeypatch) -> list:
    """Kernels are launched in the emulator; what was, as programs."""
    programs = []

    def start(program, kernel, *rest):
        programs.append(program)
        emulators(program).launch(kernel, *rest)

    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return programs


def test_every_variant_runs(launched):
    section = importlib.import_module("gpu_variants")
    rows = list(section.variants(argparse.Namespace(device="cpu", tiny=True)))
    assert all(row["ok"] for row in rows), rows
    backward = {program for program in launched if program.file.endswith("_backward.cu")}
    assert len(rows) == 2 * len(backward) == 2 * (len(section._WKV7) + len(section._WKV6))


@pytest.mark.parametrize("name", ["wkv7", "wkv6", "wkv5"])
def test_the_cases_on_the_device_are_right_and_within_their_limits(launched, monkeypatch, name):
    section = importlib.import_module("gpu_operators")
    really = section._results

    def results(name, impl, case):
        monkeypatch.setattr(Tensor, "is_cuda", impl != "naive")
        return really(name, impl, case)

    monkeypatch.setattr(section, "_results", results)
    monkeypatch.setattr(inputs, "choose", lambda impl, *_: Choice(impl, ""))
    settings = argparse.Namespace(device="cpu", launch_only=False)
    rows = list(section.compare_all(settings, (name,), (17,), (64,), section.KINDS))
    assert len(rows) == len(section.KINDS)
    assert all(row["ok"] for row in rows), rows
    family = "wkv7" if name == "wkv7" else "wkv6"  # WKV5 is WKV6 with a decay that stays
    files = {f"{family}_{kind}.cu" for kind in ("forward", "backward", "precise")}
    assert {program.file for program in launched} == files
