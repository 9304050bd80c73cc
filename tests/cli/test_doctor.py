"""The doctor on a sound machine, and on broken ones."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rwkvkit.workflow import doctor


def run_doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, dict], str]:
    done = subprocess.run(
        [sys.executable, "-m", "rwkvkit", "doctor", "--json", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, {finding["name"]: finding for finding in findings}, done.stderr


def test_the_oldest_torch_is_the_packages() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"torch>={".".join(map(str, doctor._TORCH))}"' in project
    assert doctor._TORCH >= (2, 5)  # selective checkpointing and the profiler's acc_events


def test_a_sound_machine_and_a_gpu_that_is_elsewhere() -> None:
    code, findings, _ = run_doctor("--arch", "sm_90a")
    assert code == 0, findings
    assert "kernels compile for sm_90a" in findings["kernels"]["text"]
    assert findings["tokenizer"]["status"] == findings["python"]["status"] == "ok"


def test_broken_packages_and_folders_are_named_with_their_remedies(tmp_path: Path) -> None:
    """One process with a torch that does not load, no vocabulary, and nowhere to write."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libcudart.so.13: not found')")
    (tmp_path / "rwkv").mkdir()
    (tmp_path / "rwkv/__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    code, findings, errors = run_doctor(PYTHONPATH=path, XDG_CACHE_HOME="/dev/null")
    assert code == 5
    assert "error: " in errors
    assert "checks failed" in errors
    assert findings["torch"]["status"] == "broken"
    assert "libcudart.so.13: not found" in findings["torch"]["text"]
    assert "pip install torch" in findings["torch"]["remedy"]
    assert findings["tokenizer"]["status"] == "broken"
    assert "rwkv" in findings["tokenizer"]["remedy"]
    assert findings["cache folder"]["status"] == "note"
    assert "XDG_CACHE_HOME" in findings["cache folder"]["remedy"]
    assert findings["disk"]["status"] in ("ok", "note")


def found(name: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.name == name)


def test_a_package_that_a_check_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_device", lambda: importlib.import_module("absent_package.part"))
    device = found("device")
    assert device.status == "broken"
    assert device.remedy == "pip install absent_package"


def test_an_old_architecture_gets_the_kernels_that_it_runs() -> None:
    assert "22 kernels compile for sm_75" in doctor._kernels("sm_75").text


def test_an_architecture_that_does_not_exist(run) -> None:
    outcome = run("doctor", "--arch", "sm_1")
    assert outcome.code == 5
    assert "BROKEN  kernels:" in outcome.out
    assert "hint: " in outcome.out


@pytest.mark.parametrize(
    ("built_for", "text", "remedy"),
    [
        (None, "torch is no CUDA build", "install the CUDA build of torch"),
        ("13.0", "cannot use the GPU", "update the driver"),
    ],
)
def test_a_driver_that_torch_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_for: str | None, text: str, remedy: str
) -> None:
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1\n")
    monkeypatch.setattr(doctor, "_NVIDIA", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", built_for)
    finding = doctor._device()
    assert finding.status == "broken"
    assert "470.1" in finding.text
    assert text in finding.text
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("hip", "capability", "text"),
    [
        (None, (7, 0), "older than 7.5, the portable"),
        (None, (7, 5), "kernels run in fp16 and fp32"),
        ("6.2", (9, 4), "under ROCm the portable"),
    ],
)
def test_gpus_without_all_kernels(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, capability: tuple[int, int], text: str
) -> None:
    class Properties:
        total_memory = 16 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "A Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    finding = doctor._device()
    assert finding.status == "note"
    assert text in finding.text
    assert doctor._present_architecture() == ("sm_75" if capability == (7, 5) else None)


def test_cuda_bindings_of_another_major_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvkit.ops.cuda.compile import toolkit_versions

    toolkit_versions.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(doctor, "_present_architecture", lambda: "sm_90a")
    try:
        finding = found("kernels")
    finally:
        toolkit_versions.cache_clear()
    assert finding.status == "broken"
    assert "torch is built for CUDA 12.8, but cuda-bindings is 13" in finding.text
    assert "rwkvkit[cu12]" in finding.remedy


def test_a_full_disk_and_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert doctor._disk().status == "broken"
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 15)
    finding = doctor._memory()
    assert finding.status == "note"
    assert "--memory" in finding.remedy
