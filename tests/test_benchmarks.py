"""The benchmarks run, on sizes that say nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

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

SMALL_FINETUNE = [
    *("--digits", "2", "--keys", "5", "--base-documents", "40", "--documents", "20"),
    *("--base-set", "model.n_layer=1", "model.n_embd=64", "train.total_steps=2"),
    *("--methods", "full", "lora", "state"),
]


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("ops.py", ["--rounds", "1", "--tokens", "40", "--head-size", "8"]),
        ("model.py", SMALL_MODEL),
        ("train.py", [*SMALL_MODEL, "--steps", "4", "--no-engines"]),
        ("data.py", ["--size", "2"]),
        ("finetune.py", SMALL_FINETUNE),
    ],
)
def test_benchmark(tmp_path: Path, script: str, size: list[str]) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / script, *size, "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert {"date", "command", "hardware"} <= results.keys()
