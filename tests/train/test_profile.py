"""The recording of a few steps."""

import json
import re
from pathlib import Path

import pytest
import torch

from rwkvkit.train.observe import StepReport
from rwkvkit.train.profile import Profile


def take(profile: Profile, steps: range) -> None:
    """Steps of three matrix products each."""
    weight = torch.randn(200, 200)
    for step in steps:
        for _ in range(3):
            weight @ weight
        facts = dict.fromkeys(("tokens", "loss", "lr", "weight_decay", "grad_norm"), 1.0)
        profile(StepReport(step=step, steps=9, tokens_per_s=1.0, eta_s=1.0, **facts))


@pytest.mark.parametrize(("last", "recorded"), [(9, 2), (4, 1)], ids=["whole", "cut-short"])
def test_a_trace_and_the_largest_operators(tmp_path: Path, last: int, recorded: int) -> None:
    lines: list[str] = []
    profile = Profile(2, tmp_path, lines.append)
    take(profile, range(1, last + 1))
    profile.close()
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in trace) == 3 * recorded
    assert lines[0].startswith(f"profile: {recorded} steps in {tmp_path}/trace.json")
    assert len(lines) <= 11
    assert re.fullmatch(r"  +\d+\.\d%  +\d+\.\d{3} ms CPU a step +3 calls  aten::mm", lines[1])
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 100.5


@pytest.mark.parametrize("steps", [2, 3], ids=["in-the-warm-up", "right-after-it"])
def test_a_run_too_short_to_record(tmp_path: Path, steps: int) -> None:
    lines: list[str] = []
    profile = Profile(2, tmp_path, lines.append)
    take(profile, range(1, steps + 1))
    profile.close()
    assert lines == []
    assert list(tmp_path.iterdir()) == []
