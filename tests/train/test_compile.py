"""When the blocks are compiled."""

import shutil

import pytest
import torch

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig
from rwkvkit.train import compile as compile_module
from rwkvkit.train.compile import choose_compile

LARGE = ModelConfig(arch="x070", n_layer=24, n_embd=2048)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def complete_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def test_a_cpu_is_left_alone() -> None:
    choice = choose_compile("auto", CPU, LARGE, 10**12)
    assert not choice.on
    assert "longer than it saves" in choice.reason


@pytest.mark.usefixtures("complete_gpu")
@pytest.mark.parametrize(("tokens", "on"), [(10**6, False), (10**9, True)])
def test_on_a_gpu_it_has_to_pay(tokens: int, on: bool) -> None:
    choice = choose_compile("auto", GPU, LARGE, tokens)
    assert choice.on == on
    assert choice.reason.startswith(f"compile {'on' if on else 'off'}: it would save about")


@pytest.mark.usefixtures("complete_gpu")
def test_beside_the_kernels_little_is_left_to_save() -> None:
    assert choose_compile("auto", GPU, LARGE, 3 * 10**8).on
    assert not choose_compile("auto", GPU, LARGE, 3 * 10**8, fused=True).on


@pytest.mark.usefixtures("complete_gpu")
def test_zero_3_is_not_compiled() -> None:
    assert choose_compile("auto", GPU, LARGE, 10**12, zero=2).on
    choice = choose_compile("auto", GPU, LARGE, 10**12, zero=3)
    assert not choice.on
    assert "ZeRO-3" in choice.reason


@pytest.mark.parametrize("setting", [True, False])
def test_the_recipe_decides(setting: bool) -> None:
    choice = choose_compile(setting, CPU, LARGE, 1)
    assert choice.on == setting
    assert choice.reason.endswith("the recipe says so")


@pytest.mark.usefixtures("complete_gpu")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    choice = choose_compile("auto", GPU, LARGE, 10**12)
    assert not choice.on
    assert "no C or C++ compiler" in choice.reason
    with pytest.raises(RecipeError, match="no C or C\\+\\+ compiler") as caught:
        choose_compile(True, CPU, LARGE, 1)
    assert "leave train.compile out" in str(caught.value)
    monkeypatch.setattr(compile_module.importlib.util, "find_spec", lambda name: None)
    assert "triton" in choose_compile("auto", GPU, LARGE, 10**12).reason
