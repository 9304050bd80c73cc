"""Every number of the golden files, with both operators."""

import numpy as np
import pytest
import torch
from rwkv_cases import load_golden

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig, config_from_state_dict
from rwkvkit.model.init import init_weights
from rwkvkit.model.loss import lm_loss
from rwkvkit.train.optimizer import optimizer_groups

NAMES = ("x052", "x060", "x070", "x060-state")
each_file = pytest.mark.parametrize("name", NAMES)
each_impl = pytest.mark.parametrize("impl", ["naive", "chunked"])


def build(recorded, impl="auto"):
    config = config_from_state_dict(recorded.weights)
    return build_model(config, recorded.weights, impl=impl)


@each_file
@each_impl
def test_logits_and_loss(name, impl):
    recorded = load_golden(name)
    logits = build(recorded, impl)(recorded.idx).detach()
    want = torch.from_numpy(recorded.arrays["logits"])
    assert (logits - want).abs().max() < 1e-5 * want.abs().max()
    loss = lm_loss(logits, recorded.targets).item()
    assert loss == pytest.approx(float(recorded.arrays["loss"]), rel=1e-6)


@each_file
@each_impl
def test_every_gradient(name, impl):
    recorded = load_golden(name)
    model = build(recorded, impl)
    lm_loss(model(recorded.idx), recorded.targets).backward()
    sums = {
        "rows": lambda g: g.flatten(1).sum(1),
        "cols": lambda g: g.sum(0).flatten(),
        "norm": lambda g: g.double().norm(),
    }
    seen = set()
    for key, array in recorded.arrays.items():
        kind, _, rest = key.partition("/")
        if kind not in ("grad", "gradsum"):
            continue
        parameter, _, part = rest.partition("/")
        grad = model.get_parameter(parameter).grad
        got = sums[part](grad) if part else grad
        want = torch.from_numpy(np.asarray(array)).to(got.dtype)
        # Some sums cancel to rounding noise; their scale is the gradient's own norm.
        assert (got - want).norm() < 1e-4 * max(want.norm(), grad.norm()), key
        seen.add(parameter)
    assert seen == {name for name, _ in model.named_parameters()}


@each_file
@each_impl
def test_six_steps_of_training(name, impl):
    recorded = load_golden(name)
    model = build(recorded, impl)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "x060-state" or parameter_name.endswith("time_state"))
    settings = recorded.meta["optimizer"]
    groups = optimizer_groups(model, weight_decay=settings["weight_decay"])
    optimizer = torch.optim.AdamW(
        [{**group, "lr": settings["lr"] * group["lr_scale"]} for group in groups],
        betas=settings["betas"],
        eps=settings["eps"],
    )
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = lm_loss(model(recorded.idx), recorded.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(recorded.arrays["trajectory"].tolist(), rel=1e-5)


@each_file
def test_optimizer_groups(name):
    recorded = load_golden(name)
    model = build(recorded)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "x060-state" or parameter_name.endswith("time_state"))
    weight_decay = recorded.meta["optimizer"]["weight_decay"]
    got = {
        (g["lr_scale"], g["weight_decay"]): sorted(g["names"])
        for g in optimizer_groups(model, weight_decay=weight_decay)
    }
    want = {
        (g["lr_scale"], g["weight_decay"]): g["names"]
        for g in recorded.meta["groups"]
        if g["names"]
    }
    assert got == want


@each_file
def test_initial_weights(name):
    recorded = load_golden(name)
    config = config_from_state_dict(recorded.weights)
    fresh = ModelConfig(
        arch=config.arch,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        vocab_size=config.vocab_size,
        time_state=config.time_state,
        # 32 by the older formula, under which this file was recorded
        **({"d_gate_lora": config.d_gate_lora} if config.arch == "x070" else {}),
    )
    assert fresh == config, "the derived widths and ranks are the reference's"
    weights = init_weights(fresh, seed=42)
    assert weights.keys() == recorded.meta["init"].keys()
    for key, want in recorded.meta["init"].items():
        got = weights[key]
        assert list(got.shape) == want["shape"], key
        if f"init/{key}" in recorded.arrays:
            array = torch.from_numpy(recorded.arrays[f"init/{key}"])
            assert (got - array).abs().max() < 1e-6, key
        elif want["deterministic"]:
            assert got.count_nonzero() == 0
            assert want["absmax"] == 0, key
        else:
            assert got.std().item() == pytest.approx(want["std"], rel=0.03), key
            error_of_mean = want["std"] / got.numel() ** 0.5
            assert abs(got.mean().item()) < 5 * error_of_mean, key
            assert got.abs().max().item() == pytest.approx(want["absmax"], rel=0.5), key
