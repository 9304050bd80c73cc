"""Which WKV operator a run takes."""

from dataclasses import replace

import pytest
import torch

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig
from rwkvkit.train.device import Placement
from rwkvkit.train.operator import choose_elementwise, choose_wkv

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


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that is not there."""
    monkeypatch.setattr("rwkvkit.train.operator.kernel_obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


BF16_GPU = Placement(torch.device("cuda", 0), torch.bfloat16, ("", ""))


@pytest.mark.usefixtures("hopper")
def test_kernels_do_the_elementwise_work_where_they_can(monkeypatch):
    choice = choose_elementwise("auto", BF16_GPU, model("x070"))
    assert (choice.impl, choice.reason) == ("fused", "elementwise fused: kernels for this GPU")
    assert choose_elementwise("fused", BF16_GPU, model("x070")).impl == "fused"
    assert choose_elementwise("torch", BF16_GPU, model("x070")).impl == "torch"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "sm_80" in choose_elementwise("auto", BF16_GPU, model("x070")).reason
    fp16 = replace(BF16_GPU, dtype=torch.float16)
    assert choose_elementwise("auto", fp16, model("x070")).impl == "fused"


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("placement", "shape", "message"),
    [
        (CPU, model("x070"), "the device is cpu"),
        (GPU, model("x070"), "bf16 and fp16, not float32"),
        (BF16_GPU, model("x060"), "for x070, not x060"),
        (BF16_GPU, model("x070", head_size=32), "head sizes 64 and 128, not 32"),
        (BF16_GPU, model("x070", dim_ffn=100), "dim_ffn that 8 divides, not 100"),
    ],
)
def test_elsewhere_pytorch_does_it(placement, shape, message):
    choice = choose_elementwise("auto", placement, shape)
    assert choice.impl == "torch"
    assert message in choice.reason
    with pytest.raises(RecipeError, match=message) as caught:
        choose_elementwise("fused", placement, shape)
    assert caught.value.where == "train.elementwise"
    assert "leave train.elementwise out" in caught.value.hint
