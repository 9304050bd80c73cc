"""Checkpoints that are no model, or one that has diverged: seen, and no command calls that done."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvkit import BinidxWriter
from rwkvkit.model.checkpoint import write_checkpoint
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights


@pytest.fixture
def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A small model."""
    return init_weights(ModelConfig(arch="x070", n_layer=1, n_embd=64, vocab_size=40), seed=1)


def test_a_tensor_is_missing(run, weights) -> None:
    del weights["ln_out.bias"]
    write_checkpoint(weights, Path("miss.pth"))
    seen = run("inspect", "miss.pth")
    assert seen.code == 4
    assert "problem: ln_out.bias is missing" in seen.out
    assert "error: miss.pth: ln_out.bias is missing" in seen.err
    assert "hint:" in seen.err
    as_json = run("inspect", "miss.pth", "--json")
    assert as_json.code == 4
    assert as_json.facts["problems"] == ["ln_out.bias is missing"]
    refused = run("export", "miss.pth", "-o", "new.pth")
    assert refused.code == 4
    assert "miss.pth: the tensors do not fit an x070 model: ln_out.bias is missing" in refused.err
    assert not Path("new.pth").exists()


def test_a_value_is_not_finite(run, weights) -> None:
    weights["ln_out.bias"][3] = torch.nan
    write_checkpoint(weights, Path("nan.pth"))
    seen = run("inspect", "nan.pth")
    assert seen.code == 4
    assert "problem: ln_out.bias holds values that are not finite" in seen.out
    with BinidxWriter("data") as writer:
        writer.add(np.arange(1, 30))
    measured = run("evaluate", "nan.pth", "data", "--ctx-len", "8")
    assert measured.code == 6
    assert "nan.pth: the loss is nan" in measured.err
    assert "rwkvkit inspect shows them" in measured.err
    assert "perplexity" not in measured.out


@pytest.mark.parametrize("path", [".", "/"])
def test_paths_without_a_name(run, weights, path: str) -> None:
    write_checkpoint(weights, Path("rwkv-final.pth"))
    assert run("inspect", path).code == (0 if path == "." else 4)
    for command in (["verify", path], ["evaluate", "rwkv-final.pth", path]):
        outcome = run(*command)
        assert outcome.code == 4
        assert "hint:" in outcome.err
