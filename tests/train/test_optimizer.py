import pytest
import torch

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.optimizer import optimizer_groups


def model_of(arch, **settings):
    config = ModelConfig(arch=arch, n_layer=2, n_embd=32, vocab_size=40, head_size=16, **settings)
    return build_model(config, init_weights(config, 0))


@pytest.mark.parametrize("arch", ["x052", "x060", "x070"])
def test_every_trainable_parameter_is_in_one_group(arch):
    model = model_of(arch, head_qk=8, time_state=True)
    groups = optimizer_groups(model, weight_decay=0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert model.get_parameter(name) is parameter


@pytest.mark.parametrize(
    ("arch", "name", "lr_scale", "weight_decay"),
    [
        ("x060", "blocks.0.att.time_decay_w1", 1, 0),
        ("x060", "blocks.0.att.time_maa_w2", 1, 0),
        ("x060", "blocks.0.att.time_decay", 2, 0),
        ("x060", "blocks.0.att.time_state", 1, 0.1),
        ("x052", "blocks.0.att.time_decay", 2, 0),
        ("x052", "blocks.1.att.time_faaaa", 1, 0),
        ("x052", "blocks.1.ffn.time_mix_k", 1, 0),
        ("x070", "blocks.1.att.w0", 2, 0),
        ("x070", "blocks.1.att.w1", 1, 0),
        ("x070", "blocks.1.att.time_state", 1, 0.1),
        ("x070", "blocks.1.att.key.weight", 1, 0.1),
        ("x070", "blocks.1.att.ln_x.weight", 1, 0),
        ("x070", "emb.weight", 1, 0.1),
        ("x070", "head_q.weight", 1, 0.1),
        ("x070", "ln_out.bias", 1, 0),
    ],
)
def test_the_table(arch, name, lr_scale, weight_decay):
    model = model_of(arch, head_qk=8, time_state=True)
    (group,) = (g for g in optimizer_groups(model, weight_decay=0.1) if name in g["names"])
    assert (group["lr_scale"], group["weight_decay"]) == (lr_scale, weight_decay)


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = model_of("x060", time_state=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("time_state" in name)
    (group,) = optimizer_groups(model, weight_decay=0.1)
    assert group["names"] == ["blocks.0.att.time_state", "blocks.1.att.time_state"]
    model.requires_grad_(False)
    assert optimizer_groups(model, weight_decay=0.1) == []


def test_adamw_takes_the_groups():
    model = model_of("x070")
    optimizer = torch.optim.AdamW(optimizer_groups(model, weight_decay=0.1), lr=1e-3)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0, 2.0}
