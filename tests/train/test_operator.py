"""Which WKV operator a run takes."""

import pytest
import torch

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig
from rwkvkit.train.device import Placement
from rwkvkit.train.operator import choose_wkv

CPU = Placement(torch.device("cpu"), torch.float32, ("", ""))
GPU = Placement(torch.device("cuda", 0), torch.float32, ("", ""))


def model(arch: str, n_embd: int = 64, **more: int) -> ModelConfig:
    return ModelConfig(arch=arch, n_layer=1, n_embd=n_embd, vocab_size=9, **more)


def test_the_reason_is_told():
    choice = choose_wkv("auto", CPU, model("x070"), 128)
    assert choice.impl == "chunked"
    assert choice.reason == "wkv chunked: plain PyTorch, the device is cpu"
    for arch in ("x052", "x060", "x070"):
        assert choose_wkv("precise", CPU, model(arch), 128).impl == "precise"


@pytest.mark.parametrize(
    ("setting", "placement", "arch", "message"),
    [
        ("cuda", CPU, "x070", "the tensors are on cpu"),
        ("cuda", GPU, "x070", "bf16 or fp16, not float32"),
        ("cuda", GPU, "x060", "bf16 or fp16, not float32"),
    ],
)
def test_a_demand_that_cannot_be_met_is_the_recipes_error(setting, placement, arch, message):
    with pytest.raises(RecipeError, match=message) as caught:
        choose_wkv(setting, placement, model(arch), 128)
    assert caught.value.where == "train.wkv"
    assert "leave train.wkv out" in caught.value.hint
