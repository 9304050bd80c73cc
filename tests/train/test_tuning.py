"""Fine-tuning: what trains, what stays, what is saved and comes back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tuning_cases import (
    ADAPTERS,
    ARCHS,
    BASE,
    base_values,
    base_weights,
    engine_of,
    logits,
    shape,
    tokens,
    train,
    tuning,
)

from rwkvkit import load_model
from rwkvkit.model.adapter import merged
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.rwkv import GradCp
from rwkvkit.train.adapt import apply_tuning, check_tuning, trained_parameters
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.optimizer import optimizer_groups
from rwkvkit.train.portion import AdapterPortion
from rwkvkit.train.tuning import TuningConfig

GOLDEN = Path(__file__).parents[1] / "golden/models"
IN_PEFT = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("method", [*ADAPTERS, "state"])
def test_only_what_is_meant_to_changes(arch: str, method: str) -> None:
    engine = engine_of(arch, tuning(method))
    before = base_values(engine)
    if method != "pissa":  # which takes out of the matrices what it trains
        for name, tensor in base_weights(arch).items():
            assert torch.equal(before[name], tensor), name
    train(engine, 0, 1)
    for name, tensor in base_values(engine).items():
        frozen = not name.endswith("time_state")
        assert torch.equal(tensor, before[name]) == frozen, name
    moving = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
    config = shape(arch, time_state=method == "state")
    assert sum(p.numel() for p in moving.values()) == trained_parameters(tuning(method), config)
    per_matrix = {"lora": 2, "dora": 3, "pissa": 2, "miss": 1}.get(method, 0)
    matrices = {"x052": 8, "x060": 8, "x070": 6}[arch]
    assert len(moving) == (2 if method == "state" else 2 * per_matrix * matrices)
    assert sum(len(group["names"]) for group in optimizer_groups(engine.model, weight_decay=0)) \
        == len(moving)  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_starts_from_the_base_and_merges_into_it(
    tmp_path: Path, arch: str, method: str
) -> None:
    engine = engine_of(arch, tuning(method))
    base = build_model(shape(arch), base_weights(arch))(tokens(9)[0]).detach()
    torch.testing.assert_close(logits(engine), base, rtol=1e-5, atol=1e-5 * base.abs().max().item())
    train(engine, 0, 1, 2)
    applied = logits(engine)
    assert (applied - base).abs().max() > 0.01 * base.abs().max()
    engine.write_model(tmp_path / "adapter")
    both = build_model(shape(arch), merged(base_weights(arch), tmp_path / "adapter"))
    with torch.no_grad():
        assert (both(tokens(9)[0]) - applied).abs().max() < 1e-5 * applied.abs().max()


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_loads_the_adapter(tmp_path: Path, method: str) -> None:
    engine = engine_of("x070", tuning(method))
    train(engine, 0, 1)
    engine.write_model(tmp_path / "adapter")
    model = build_model(shape("x070"), base_weights("x070"))
    theirs = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    with torch.no_grad():
        got = theirs(tokens(9)[0])
    want = logits(engine)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "chosen",
    [
        tuning("state"),
        tuning("lora", dropout=0.2, train=["ln_out", "att.x_r"]),
        tuning("pissa"),
        tuning("miss"),
        tuning("full", freeze=["emb", "head"]),
    ],
    ids=lambda chosen: chosen.method,
)
def test_a_checkpoint_continues_bit_for_bit(
    tmp_path: Path, chosen: TuningConfig, dtype: torch.dtype
) -> None:
    engine = engine_of("x070", chosen, dtype)
    train(engine, 0, 1)
    engine.save(tmp_path)
    onward = train(engine, 2, 3)
    other = engine_of("x070", chosen, dtype)
    other.load(tmp_path)
    assert train(other, 2, 3) == onward
    ours, theirs = engine.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"optimizer.pt"} | {
        "state": {"state.pth", "state.json"},
        "full": {"model.pth"},
        "lora": {*IN_PEFT, "base.json", "trained.pth"},
    }.get(chosen.method, {*IN_PEFT, "base.json"})


def test_pissa_resumes_where_the_singular_vectors_come_out_otherwise(tmp_path: Path) -> None:
    """Their signs, for one, are the machine's choice."""
    engine = engine_of("x070", tuning("pissa"))
    train(engine, 0, 1)
    engine.save(tmp_path)
    other = engine_of("x070", tuning("pissa"))
    for name, tensor in other.model.state_dict().items():
        if ".lora_A." in name:
            tensor.mul_(0.5)
    model = other.model
    for layer in model.modules():  # as if half as much had been taken out of each matrix
        if hasattr(layer, "lora_A"):
            taken = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            layer.base_layer.weight.data += taken
    again = apply_tuning_again(model, other)
    again.load(tmp_path)
    got, want = logits(again), logits(engine)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def apply_tuning_again(model: Any, engine: TorchEngine) -> TorchEngine:
    """An engine over a model whose adapters are there already."""
    portion = AdapterPortion(model, model.peft_config["default"], set(), BASE)
    settings = TrainConfig(micro_bsz=2, lr_init=1e-2, lr_final=1e-2, tuning=tuning("pissa"))
    return TorchEngine(model, settings, portion=portion)


@pytest.mark.parametrize(
    "chosen",
    [tuning("state"), tuning("lora", dropout=0.2), tuning("miss", dropout=0.2)],
    ids=lambda chosen: chosen.method,
)
@pytest.mark.parametrize("grad_cp", [True, "selective"])
def test_activations_computed_again_change_nothing(chosen: TuningConfig, grad_cp: GradCp) -> None:
    """Nothing before the first block trains, and an adapter draws its dropout once."""
    plain, again = engine_of("x070", chosen), engine_of("x070", chosen, grad_cp=grad_cp)
    losses = []
    for engine in (plain, again):
        torch.manual_seed(7)
        losses.append(train(engine, 0, 1))
    assert losses[0] == losses[1]
    ours, theirs = plain.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_parameters_of_the_base_train_beside_an_adapter(tmp_path: Path) -> None:
    engine = engine_of("x070", tuning("lora", targets=["ffn.key"], train=["ln_out", "att.w0"]))
    before = base_values(engine)
    train(engine, 0)
    after = base_values(engine)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    own = {"ln_out.weight", "ln_out.bias", "blocks.0.att.w0", "blocks.1.att.w0"}
    assert changed == own
    engine.write_model(tmp_path / "adapter")
    both = merged(base_weights("x070"), tmp_path / "adapter")
    assert all(torch.equal(both[name], after[name]) for name in own)


def test_full_with_some_frozen_or_only_some_trained() -> None:
    engine = engine_of("x070", tuning(freeze=["emb", "blocks.0", "att.key"]))
    before = base_values(engine)
    train(engine, 0)
    after = base_values(engine)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {
        name
        for name in before
        if name.startswith(("emb", "blocks.0.")) or name == "blocks.1.att.key.weight"
    }
    only = engine_of("x070", tuning(train=["*.ln*", "ln_out"]))
    trained = {name for name, p in only.model.named_parameters() if p.requires_grad}
    assert trained == {name for name in before if "ln" in name}


def test_state_tuning_as_the_reference_does_it() -> None:
    with np.load(GOLDEN / "x060-state.npz") as recorded:
        weights = {
            key.removeprefix("weight/"): torch.from_numpy(recorded[key]).float()
            for key in recorded.files
            if key.startswith("weight/")
        }
        x, y = (torch.from_numpy(recorded[key]).long() for key in ("idx", "targets"))
        trajectory = recorded["trajectory"].tolist()
        optimizer = json.loads(recorded["meta"].tobytes())["optimizer"]
    model = load_model(weights)
    portion = apply_tuning(model, tuning("state"), BASE)
    settings = TrainConfig(
        micro_bsz=len(x),
        lr_init=optimizer["lr"],
        lr_final=optimizer["lr"],
        beta1=optimizer["betas"][0],
        beta2=optimizer["betas"][1],
        adam_eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        grad_clip=optimizer["grad_clip"],
        tuning=tuning("state"),
    )
    engine = TorchEngine(model, settings, portion=portion)
    losses = [
        engine.step(Batch(x, y), lr=optimizer["lr"], weight_decay=optimizer["weight_decay"]).loss
        for _ in trajectory
    ]
    assert losses == pytest.approx(trajectory, rel=1e-5)


def test_state_tuning_is_the_same_for_any_batch() -> None:
    """One state serves every sample: its gradient is the mean over them."""
    for arch in ARCHS:
        model = engine_of(arch, tuning("state")).model
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("time_state"):
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        x, y = tokens(3, batch=3)
        model.loss(x, y).backward()
        states = [p for n, p in model.named_parameters() if n.endswith("time_state")]
        whole = [p.grad.clone() for p in states]
        for parameter in states:
            parameter.grad = None
        for row in range(3):
            (model.loss(x[row : row + 1], y[row : row + 1]) / 3).backward()
        for parameter, want in zip(states, whole, strict=True):
            torch.testing.assert_close(parameter.grad, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapters_matrices_decay(method: str) -> None:
    groups = optimizer_groups(engine_of("x070", tuning(method)).model, weight_decay=0.1)
    decays = {name: group["weight_decay"] > 0 for group in groups for name in group["names"]}
    assert decays == {name: "magnitude_vector" not in name for name in decays}


def test_learning_rates_by_pattern() -> None:
    model = build_model(shape("x070"), base_weights("x070"))
    scales = {"blocks.0.att.key": 0.25, "blocks.0": 0.5, "att.w0": 3.0, "emb": 0.1}
    groups = optimizer_groups(model, weight_decay=0.1, lr_scale=scales)
    found = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert found["blocks.0.att.key.weight"] == 0.25
    assert found["blocks.0.att.w0"] == 1.0  # the first pattern that matches, times the table's 2
    assert found["blocks.1.att.w0"] == 6.0
    assert found["emb.weight"] == 0.1
    assert found["blocks.1.ffn.key.weight"] == 1.0
    lora = engine_of("x070", tuning("lora", lr_scale={"*.lora_B": 16.0})).model  # LoRA+
    check_tuning(tuning("lora", lr_scale={"*.lora_B": 16.0}), shape("x070"))
    groups = optimizer_groups(lora, weight_decay=0, lr_scale={"*.lora_B": 16.0})
    assert {n: g["lr_scale"] == 16 for g in groups for n in g["names"]} == {
        name: ".lora_B." in name for name, p in lora.named_parameters() if p.requires_grad
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = TrainConfig(
        micro_bsz=4, lr_init=1, lr_final=1, tuning=TuningConfig(lr_scale={"head": 10.0})
    )
    engine = TorchEngine(model, settings)
    engine.step(Batch(*tokens(0)), lr=1e-4, weight_decay=0.0)
    after = model.state_dict()
    step = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert step["head.weight"] == pytest.approx(10 * step["ln_out.weight"], rel=0.01)
    assert step["blocks.1.att.w0"] == pytest.approx(2 * step["ln_out.weight"], rel=0.01)


def test_an_adapter_starts_the_same_in_every_process() -> None:
    """Whatever their random states, of which nothing is used up."""
    made = []
    for rank in range(2):
        torch.manual_seed(42 + rank)
        before = torch.get_rng_state()
        model = build_model(shape("x070"), base_weights("x070"))
        apply_tuning(model, tuning("lora"), BASE, seed=42)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(model.state_dict())
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())
