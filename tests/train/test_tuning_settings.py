"""Fine-tuning: which settings are refused, and what is said of the others."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tuning_cases import BASE, engine_of, shape, tuning

from rwkvkit.errors import RecipeError
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.init import init_weights, weight_shapes
from rwkvkit.train.adapt import apply_tuning, check_tuning, rate_hint
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.tuning import TuningConfig


@pytest.mark.parametrize(
    ("chosen", "where", "near"),
    [
        (tuning(freeze=["blocks.7"]), "freeze", "blocks."),
        (tuning(train=["att.keys"]), "train", "att.key"),
        (tuning(lr_scale={"embed": 0.1}), "lr_scale", "emb"),
        (tuning("lora", lr_scale={"*.miss_block": 2.0}), "lr_scale", "near it"),
        (tuning("lora", targets=["att.kye"]), "targets", "att.key"),
        (tuning("lora", targets=["emb"]), "targets", "att."),  # no matrix of a block
    ],
)
def test_patterns_that_match_nothing(chosen: TuningConfig, where: str, near: str) -> None:
    with pytest.raises(RecipeError, match="matches nothing") as caught:
        check_tuning(chosen, shape("x070"))
    assert caught.value.where == f"train.tuning.{where}"
    assert near in caught.value.hint


@pytest.mark.parametrize(
    ("chosen", "where"),
    [
        (tuning("lora", train=["att.w0"], freeze=["emb"]), "freeze"),
        (tuning(train=["att"], freeze=["emb"]), "freeze"),
        (tuning("lora", lr_scale={"emb": 0.1}), "lr_scale"),
        (tuning(freeze=["emb"], lr_scale={"emb": 0.1}), "lr_scale"),
    ],
)
def test_patterns_of_what_does_not_train(chosen: TuningConfig, where: str) -> None:
    with pytest.raises(RecipeError, match="'emb' names parameters that do not train") as caught:
        check_tuning(chosen, shape("x070"))
    assert caught.value.where == f"train.tuning.{where}"
    assert caught.value.hint == "remove it"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 8}, "only an adapter has that"),
        ({"method": "state", "train": ["emb"]}, "trains the states alone"),
        ({"method": "miss", "alpha": 4}, "miss has no alpha"),
        ({"method": "pissa", "quantize": "int8"}, "it needs quantize: none"),
        ({"quantize": "nf4"}, "only an adapter has that"),
        ({"lr_scale": {"emb": 0.0}}, "above 0"),
        ({"method": "lora", "freeze": ["emb"]}, "nothing of the base trains"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TuningConfig(**given)


def test_ranks_and_matrices_that_cannot_be() -> None:
    with pytest.raises(RecipeError, match="no low rank"):
        engine_of("x070", TuningConfig(method="lora", rank=33))
    model = build_model(shape("x070"), init_weights(shape("x070"), 0))
    with pytest.raises(RecipeError, match="a row of zeros"):  # output starts as zeros
        apply_tuning(model, tuning("dora"), BASE)
    with pytest.raises(RecipeError, match="train itself and through its adapter"):
        check_tuning(tuning("lora", train=["att.key"]), shape("x070"))
    with pytest.raises(RecipeError, match="nothing is left to train") as caught:
        check_tuning(tuning(freeze=["*"]), shape("x070"))
    assert "freeze less" in caught.value.hint


def test_what_is_said_about_it() -> None:
    config = shape("x070", time_state=True)
    assert check_tuning(tuning(), config) == []
    total = sum(torch.Size(s).numel() for s in weight_shapes(config).values())
    assert check_tuning(tuning("state"), config) == [f"state: 1,024 of {total:,} parameters train"]
    assert check_tuning(tuning("lora", train=["ln_out"]), config) == [
        "lora: rank 4 alpha 8 at 12 matrices: 4,672 parameters train, 64 of them the base's"
    ]
    for method, lr, said in [
        ("state", 1, 0),
        ("state", 1e-5, 1),
        ("lora", 1e-4, 0),
        ("full", 1, 1),
    ]:
        settings = TrainConfig(micro_bsz=1, lr_init=lr, lr_final=lr, tuning=tuning(method))
        assert len(rate_hint(settings)) == said
