"""When passes are recorded as CUDA graphs."""

from dataclasses import replace

import pytest
import torch

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig
from rwkvkit.train import graphs as graphs_module
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Card
from rwkvkit.train.estimate import Setup, estimate_speed, estimate_times
from rwkvkit.train.graphs import Graphs, choose_graphs

H100 = Card(989, 3350)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = Setup(
    ModelConfig(arch="x070", n_layer=12, n_embd=768), 2, 512, torch.bfloat16, impl="precise"
)
LARGE = replace(SMALL, model=ModelConfig(arch="x070", n_layer=24, n_embd=2048), ctx_len=4096)


@pytest.fixture(autouse=True)
def known_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "card_at", lambda device: H100)


def choose(setup: Setup = SMALL, device: torch.device = GPU, engine: str = "torch", **of) -> Graphs:
    config = TrainConfig(**{"micro_bsz": 2, "lr_init": 1e-3, "lr_final": 1e-3, **of})
    return choose_graphs(config, setup, device, engine=engine, compiled=False)


def test_small_models_are_recorded_and_large_ones_need_not_be() -> None:
    small, large = choose(SMALL), choose(LARGE)
    assert small.on
    assert not small.demanded
    assert small.reason.startswith("cuda graphs on: a pass takes about")
    assert not large.on
    assert large.reason.startswith("cuda graphs off: a pass takes about")


def test_the_estimate_of_speed_knows_recordings() -> None:
    work, launching = estimate_times(SMALL, H100, compiled=False)
    assert launching > work
    eager = estimate_speed(SMALL, H100, compiled=False)
    recorded = estimate_speed(SMALL, H100, compiled=False, recorded=True)
    assert recorded / eager == pytest.approx(launching / work)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"device": CPU}, "the device is cpu"),
        ({"engine": "deepspeed"}, "deepspeed runs the passes"),
        ({"sampling": {"order": "infctx"}}, "a state between them"),
        ({"sampling": {"order": "padded"}}, "many widths"),
        ({"grad_cp": True}, "grad_cp is for models"),
        ({"grad_cp": "selective"}, "grad_cp is for models"),
        ({"dropout": 0.1}, "dropout draws"),
        ({"tuning": {"method": "lora", "dropout": 0.1}}, "dropout draws"),
        ({"tuning": {"method": "lora", "quantize": "nf4"}}, "a base in nf4"),
    ],
)
def test_where_it_cannot_be(given: dict, reason: str) -> None:
    choice = choose(**given)
    assert not choice.on
    assert reason in choice.reason
    with pytest.raises(RecipeError, match=reason) as caught:
        choose(**given, cuda_graphs=True)
    assert "leave train.cuda_graphs out" in str(caught.value)
    assert choose(**given, cuda_graphs=False).reason == "cuda graphs off: the recipe says so"


def test_the_recipe_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(LARGE, cuda_graphs=True) == Graphs(
        True, "cuda graphs on: the recipe says so", demanded=True
    )
    monkeypatch.setattr(graphs_module, "card_at", lambda device: None)
    assert "not known for this GPU" in choose().reason
