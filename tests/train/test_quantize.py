"""Quantized matrices under adapters: bitsandbytes on the CPU."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwkvkit.errors import SetupError
from rwkvkit.model.adapter import merged
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.train.adapt import apply_tuning, check_tuning, weight_bytes
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.tuning import TuningConfig

SHAPE = ModelConfig(arch="x070", n_layer=2, n_embd=64, head_size=16, vocab_size=40)
KEY = "blocks.1.att.key"


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in init_weights(SHAPE, 1).items()
    }


def engine_of(kind: str, method: str = "lora", dtype: torch.dtype = torch.float32) -> TorchEngine:
    torch.manual_seed(0)
    model = build_model(SHAPE, weights())
    chosen = TuningConfig(method=method, rank=4, quantize=kind)
    portion = apply_tuning(model, chosen, {"path": "b", "sha256": "0"}, dtype=dtype)
    settings = TrainConfig(micro_bsz=2, lr_init=1e-2, lr_final=1e-2, tuning=chosen)
    return TorchEngine(model, settings, dtype, portion)


def train(engine: TorchEngine, *seeds: int) -> list[float]:
    losses = []
    for seed in seeds:
        ids = torch.randint(40, (2, 19), generator=torch.Generator().manual_seed(seed))
        losses.append(engine.step(Batch(ids[:, :-1], ids[:, 1:]), lr=1e-2, weight_decay=0).loss)
    return losses


@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 8, 0.01), ("nf4", 4, 0.12)])
def test_matrices_are_smaller_and_nearly_the_same(kind: str, bits: int, error: float) -> None:
    layer: Any = engine_of(kind).model.get_submodule(KEY).get_base_layer()
    exact = weights()[f"{KEY}.weight"]
    assert layer.weight.numel() * layer.weight.element_size() * 8 == bits * exact.numel()
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    y, want = layer(x), x.detach() @ exact.mT
    assert 0 < (y - want).norm() < error * want.norm()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    want = exact.sum(0).expand(7, -1)
    assert 0 < (gradient - want).norm() < error * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "method"),
    [("int8", "lora"), ("int8", "miss"), ("nf4", "lora"), ("nf4", "dora"), ("nf4", "miss")],
)
def test_training_over_quantized_matrices(
    tmp_path: Path, kind: str, method: str, dtype: torch.dtype
) -> None:
    engine = engine_of(kind, method, dtype)
    frozen = {n: p.clone() for n, p in engine.model.named_parameters() if not p.requires_grad}
    losses = train(engine, 0, 0, 0)
    assert losses[2] < losses[0]
    for name, tensor in frozen.items():
        assert torch.equal(tensor, engine.model.get_parameter(name)), name
    engine.save(tmp_path)
    onward = train(engine, 1, 2)
    again = engine_of(kind, method, dtype)
    again.load(tmp_path)
    assert train(again, 1, 2) == onward


def test_evaluation_computes_as_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    shape = ModelConfig(arch="x052", n_layer=1, n_embd=64, head_size=16, vocab_size=40)
    assert shape.dim_ffn % 64  # the input of ffn.value
    generator = torch.Generator().manual_seed(1)
    model = build_model(shape, init_weights(shape, 1))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    chosen = TuningConfig(method="lora", rank=4, quantize="nf4")
    apply_tuning(model, chosen, {"path": "b", "sha256": "0"})
    ids = torch.randint(40, (2, 9), generator=generator)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), model.train()(ids))


def test_the_adapter_goes_into_the_base_as_it_was(tmp_path: Path) -> None:
    engine = engine_of("int8")
    train(engine, 0, 1)
    engine.write_model(tmp_path / "adapter")
    both = build_model(SHAPE, merged(weights(), tmp_path / "adapter"))
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        got, want = both(ids), engine.model(ids)
        base = build_model(SHAPE, weights())(ids)
    assert (got - want).norm() < 0.2 * (want - base).norm()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_bytes_that_are_estimated(kind: str) -> None:
    model = engine_of(kind, dtype=torch.bfloat16).model
    tables = ("quant_map", ".quant_state", ".weight_format")  # a kilobyte a matrix
    held = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name and not any(part in name for part in tables)
    )
    chosen = TuningConfig(method="lora", rank=4, quantize=kind)
    assert weight_bytes(chosen, SHAPE, torch.bfloat16) == held
    whole = weight_bytes(TuningConfig(method="lora", rank=4), SHAPE, torch.bfloat16)
    assert whole == 2 * sum(tensor.numel() for tensor in weights().values())


def test_what_is_said() -> None:
    chosen = TuningConfig(method="lora", rank=4, quantize="nf4")
    assert check_tuning(chosen, SHAPE) == [
        "lora: rank 4 alpha 8 at 12 matrices kept in nf4: 9,216 parameters train"
    ]


def test_bitsandbytes_is_missing_or_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *arguments: object, **options: object) -> None:
            raise NotImplementedError("no kernel for this device")

    with monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.nn.Linear4bit", Broken)
        with pytest.raises(SetupError, match="cannot quantize on cpu: no kernel"):
            engine_of("nf4")
    with pytest.raises(SetupError, match="cannot train DoRA over int8"):
        engine_of("int8", "dora")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SetupError, match="need the package bitsandbytes") as caught:
        engine_of("int8")
    assert "rwkvkit[quantize]" in caught.value.hint
