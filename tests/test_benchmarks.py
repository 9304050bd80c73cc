"""The benchmarks run, on sizes that say nothing about speed."""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SMALL_MODEL = [
    "--rounds",
    "1",
    "--n-layer",
    "1",
    "--n-embd",
    "64",
    "--vocab-size",
    "99",
    "--ctx-len",
    "16",
    "--threads",
    "1",
]

# Three digits, and a base that has only begun to learn them: a minute, not a quarter of an hour.
SMALL_FINETUNE = [
    *("--digits", "3", "--keys", "100", "--base-documents", "4800", "--documents", "900"),
    *("--base-set", "model.n_layer=2", "train.total_steps=300", "train.lr_init=3e-3"),
    *("--tune-set", "prepare.2.repeat-shuffle.epochs=6"),
    *("--methods", "full", "lora", "state"),
]


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("ops.py", ["--rounds", "1", "--tokens", "40", "--head-size", "8"]),
        ("model.py", SMALL_MODEL),
        ("train.py", [*SMALL_MODEL, "--steps", "4", "--no-engines"]),
        ("data.py", ["--size", "2"]),
        pytest.param(
            *("kernels.py", ["--tokens", "16"]),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="it needs g++ and NVRTC"),
        ),
    ],
)
def test_benchmark(tmp_path: Path, script: str, size: list[str]) -> None:
    results = run_benchmark(tmp_path, script, size)
    assert {"date", "command", "hardware"} <= results.keys()


def test_fine_tuning_succeeds(tmp_path: Path) -> None:
    found = run_benchmark(tmp_path, "finetune.py", SMALL_FINETUNE)
    assert found["base"]["share"] < 0.8  # what is to be learned is not known yet
    shares = {method: result["share"] for method, result in found["results"].items()}
    assert all(shares[method] > 0.95 for method in ("full", "lora", "state")), shares


def run_benchmark(folder: Path, script: str, options: list[str]) -> dict[str, Any]:
    out = folder / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / script, *options, "--out", out]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def test_the_gpu_check_walks_without_a_gpu(tmp_path: Path) -> None:
    script = ROOT / "benchmarks/gpu_check.sh"
    command = ["bash", script, tmp_path, "--device", "cpu", "--tiny"]
    folder = Path(sys.executable).parent  # python3 is the interpreter of this test
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("all sections passed")
    found = json.loads((tmp_path / "gpu-check.json").read_text())["sections"]
    sections = (
        "compile",
        "correctness wkv7",
        "correctness wkv6",
        "operators",
        "elementwise",
        "head",
        "steps",
    )
    for name in (*sections, "correctness others", "recorded steps"):
        assert found[name]["verdict"] == "ok", found[name]
        assert found[name]["rows"]
    assert found["sanitizer"]["verdict"] == "not run"


def test_the_gpu_check_names_what_failed_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu_check = importlib.import_module("gpu_check")
    settings = argparse.Namespace(device="cpu", tiny=True, out=None, section=None)
    assert "KeyError: 'nothing'" in gpu_check._run("nothing", 60, settings)["note"]
    assert gpu_check._run("steps", 1, settings)["verdict"] == "time over"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("false"))
        silent = gpu_check._run("steps", 60, settings)
        assert silent["verdict"] == "FAILED"
        assert silent["note"].startswith("exit code 1")
        slow = tmp_path / "slow"
        slow.write_text("#!/bin/sh\nsleep 60\n")
        slow.chmod(0o755)
        patch.setattr(sys, "executable", str(slow))
        assert gpu_check._run("steps", 10, settings)["verdict"] == "time over"
    monkeypatch.setitem(gpu_check._NEEDED, "nowhere.to.be.found", "a-package")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 5
    assert "missing: a-package" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faults", "kernels", "right"),
    [
        ("1 error; 9", "0 errors; 0", [True, True]),
        ("1 error; 1", "0 errors; 0", [True, True]),  # the process could not go on
        ("0 errors; 0", "0 errors; 0", [False, True]),
        ("1 error; 9", "2 errors; 9", [True, False]),
        ("1 error; 9", "0 errors; 1", [True, False]),
        ("1 error; 9", "; 0", [True, False]),
    ],
)
def test_a_sanitizer_that_sees_no_planted_fault_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: str, kernels: str, right: list[bool]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    stand_in = tmp_path / "compute-sanitizer"
    each = [
        f"echo '= ERROR SUMMARY: {x.replace(';', chr(39) + '; exit')}" for x in (faults, kernels)
    ]
    stand_in.write_text(f'#!/bin/sh\ncase "$*" in *planted*) {each[0]};; *) {each[1]};; esac\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sanitizer = importlib.import_module("gpu_sanitizer").sanitizer
    rows = list(sanitizer(argparse.Namespace(limit=60)))
    assert [row["what"].partition(",")[0] for row in rows] == ["memcheck"] * 2 + ["racecheck"] * 2
    assert [row["ok"] for row in rows] == right * 2


def test_a_process_ends_with_its_children_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    run_within = importlib.import_module("gpu_process").run_within
    late = tmp_path / "late"
    script = f"(sleep 4; touch {late}) & echo begun; echo $SOME; sleep 60"
    done = run_within(1, ["bash", "-c", script], {"SOME": "thing"})
    assert done.code is None
    assert not done.ok
    assert done.said().splitlines() == ["begun", "thing", "not done after at most 1 s"]
    time.sleep(4)
    assert not late.exists()
