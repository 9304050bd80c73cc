"""Estimates of memory against what real steps on the CPU hold; of speed against the step model."""

from dataclasses import replace

import pytest
import torch

from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.model.rwkv import RWKV
from rwkvkit.train.adapt import apply_tuning
from rwkvkit.train.backend import choose_backend, reduce_bucket
from rwkvkit.train.batch import Batch
from rwkvkit.train.compile import EAGER_COMPILED, FUSED_COMPILED
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Card, Placement
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.estimate import Setup, estimate_memory, estimate_speed, would_fit
from rwkvkit.train.footprint import Ledger, block_footprint
from rwkvkit.train.passes import losses
from rwkvkit.workflow import forecast

SIZES = [(2, 64, 2, 96), (4, 128, 3, 160)]  # n_layer, n_embd, micro_bsz, ctx_len
H200 = Card(989, 4800)


def setup_of(arch: str, size: tuple[int, int, int, int], **more: object) -> Setup:
    n_layer, n_embd, micro_bsz, ctx_len = size
    model = ModelConfig(arch=arch, n_layer=n_layer, n_embd=n_embd, vocab_size=300)
    given = {"dtype": torch.float32, "on_gpu": False, **more}
    return Setup(model, micro_bsz, ctx_len, **given)


def real(setup: Setup) -> tuple[RWKV, torch.Tensor]:
    weights = init_weights(setup.model, 0)
    model = build_model(setup.model, weights, dtype=setup.dtype, grad_cp=setup.grad_cp)
    idx = torch.randint(setup.model.vocab_size, (setup.micro_bsz, setup.ctx_len))
    return model, idx


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arch", ["x052", "x060", "x070"])
def test_what_blocks_keep_for_the_backward_pass(arch: str, size: tuple[int, int, int, int]) -> None:
    setup = setup_of(arch, size)
    model, idx = real(setup)
    with Ledger() as measured:
        loss = model.loss(idx, idx)
    assert loss.requires_grad
    blocks = setup.model.n_layer * setup.footprint.saved
    assert blocks == pytest.approx(measured.held, rel=0.15)


@pytest.mark.parametrize("grad_cp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["x052", "x060", "x070"])
def test_the_most_a_pass_holds(arch: str, dtype: torch.dtype, grad_cp: bool) -> None:
    setup = setup_of(arch, SIZES[1], dtype=dtype, grad_cp=grad_cp)
    model, idx = real(setup)
    with Ledger() as measured:
        model.loss(idx, idx).backward()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    estimated = estimate_memory(setup).activations
    # The model's gradients grow while the activations shrink: somewhere between none and all.
    assert 0.85 * (measured.peak - gradients) < estimated < 1.15 * measured.peak


@pytest.mark.parametrize("tuning", [{"method": "state"}, {"method": "lora", "rank": 2}])
@pytest.mark.parametrize("arch", ["x052", "x060", "x070"])
def test_the_most_a_pass_holds_where_weights_are_frozen(
    arch: str, tuning: dict[str, object]
) -> None:
    config = TrainConfig(micro_bsz=2, lr_init=1e-3, lr_final=1e-3, tuning=tuning)
    place = Placement(torch.device("cpu"), torch.float32, ("", ""))
    size = (10, 128, 2, 96)  # the first block holds less
    model = setup_of(arch, size).model.model_copy(
        update={"time_state": tuning["method"] == "state"}
    )
    setup = forecast.setup_of(config, model, 96, place)
    whole, idx = real(setup)
    apply_tuning(whole, config.tuning, {})
    with Ledger() as measured:
        whole.loss(idx, idx).backward()
    estimated = estimate_memory(setup).activations
    assert estimated == pytest.approx(measured.peak, rel=0.08)
    assert estimated < 0.96 * estimate_memory(replace(setup, trained_names=None)).activations


@pytest.mark.parametrize(("segments", "truncate"), [(4, 1), (8, 2), (8, 4)])
@pytest.mark.parametrize("arch", ["x060", "x070"])
def test_what_long_samples_hold(arch: str, segments: int, truncate: int) -> None:
    """States between segments, and gradients of the losses before."""
    setup = setup_of(arch, SIZES[1], carried=truncate)
    model, _ = real(setup)
    idx = torch.randint(300, (setup.micro_bsz, segments * setup.ctx_len))
    with Ledger() as measured:
        for loss in losses(model, Batch(idx, idx, segments=segments), truncate):
            loss.backward()
    memory = estimate_memory(setup)
    estimated = memory.total - memory.weights - memory.masters - memory.moments
    assert estimated == pytest.approx(measured.peak, rel=0.08)
    assert memory.activations > estimate_memory(replace(setup, carried=0)).activations


@pytest.mark.parametrize(
    ("sampling", "carried"),
    [
        ({}, 0),
        ({"order": "infctx"}, 4),
        ({"order": "infctx", "segments": 3}, 3),
        ({"order": "infctx", "segments": 9, "truncate": 0}, 9),
        ({"order": "infctx", "segments": 1}, 0),
        ({"order": "infctx", "truncate": 0}, 1),  # more, as only the data says
    ],
)
def test_what_a_recipe_carries(sampling: dict[str, object], carried: int) -> None:
    config = TrainConfig(micro_bsz=1, lr_init=1e-3, lr_final=1e-3, sampling=sampling)
    placement = Placement(torch.device("cpu"), torch.float32, ("", ""))
    model = setup_of("x070", SIZES[0]).model
    assert forecast.setup_of(config, model, 96, placement).carried == carried


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_whole_step_holds(dtype: torch.dtype, passes: int) -> None:
    setup = setup_of("x070", (2, 256, 1, 32), dtype=dtype, accumulate=passes)
    config = TrainConfig(
        micro_bsz=1, accumulate_grad_batches=passes, lr_init=1e-3, lr_final=1e-3, device="cpu"
    )
    model, _ = real(replace(setup, dtype=torch.float32))
    x = torch.randint(300, (passes, 32))
    weights = sum(p.numel() * 4 for p in model.parameters())
    with Ledger() as measured:
        engine = TorchEngine(model, config, dtype)
        for _ in range(2):
            engine.step(Batch(x, x), lr=1e-3, weight_decay=0.0)
    memory = estimate_memory(setup)
    # In fp32 the weights were there before; in bf16 their float32 values went into the masters.
    seen = measured.peak + (weights if dtype == torch.float32 else 0)
    assert memory.total == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_step_holds_whose_gradients_stay(dtype: torch.dtype) -> None:
    setup = setup_of("x070", (2, 256, 1, 128), dtype=dtype)
    model, _ = real(replace(setup, dtype=torch.float32))
    x = torch.randint(300, (1, 128))
    config = TrainConfig(micro_bsz=1, lr_init=1e-3, lr_final=1e-3, device="cpu")
    weights = sum(p.numel() * 4 for p in model.parameters())
    with Ledger() as measured:
        engine = TorchEngine(model, config, dtype, recording=lambda run: run)
        for _ in range(2):
            engine.step(Batch(x, x), lr=1e-3, weight_decay=0.0)
    seen = measured.peak + (weights if dtype == torch.float32 else 0)
    assert estimate_memory(setup, recorded=True).total == pytest.approx(seen, rel=0.05)


def test_footprints_are_exact_whatever_the_length() -> None:
    model = ModelConfig(arch="x060", n_layer=1, n_embd=64, vocab_size=99)
    far = block_footprint(model, torch.bfloat16, "chunked", 5, 4096)
    near = block_footprint(model, torch.bfloat16, "chunked", 5, 2048)
    assert far.saved / near.saved == pytest.approx(2, rel=0.01)
    assert far.launches > near.launches


def test_kernels_keep_less_than_plain_pytorch() -> None:
    model = ModelConfig(arch="x070", n_layer=1, n_embd=128, vocab_size=99)
    kernels, portable = (
        block_footprint(model, torch.bfloat16, impl, 4, 256) for impl in ("cuda", "chunked")
    )
    in_fp32 = block_footprint(model, torch.bfloat16, "precise", 4, 256)
    assert kernels.saved < in_fp32.saved
    assert kernels.kernel < in_fp32.kernel
    assert kernels.saved < 0.9 * portable.saved
    assert kernels.kernel > 0 == portable.kernel
    assert kernels.launches < portable.launches / 2


@pytest.mark.parametrize("fused", [False, True])
def test_the_passes_that_compiling_is_weighed_by_are_the_footprints(fused: bool) -> None:
    model = ModelConfig(arch="x070", n_layer=24, n_embd=2048)
    found = block_footprint(model, torch.bfloat16, "cuda", 8, 4096, fused=fused)
    eager, _ = FUSED_COMPILED if fused else EAGER_COMPILED
    assert found.traffic / (8 * 4096 * 2048 * 2) == pytest.approx(eager, abs=1)


def test_zero_and_offload_share_and_move_the_state() -> None:
    setup = setup_of("x070", (2, 256, 1, 32), dtype=torch.bfloat16, world=8)
    plain = estimate_memory(setup)
    first, second, third, away = (
        estimate_memory(replace(setup, **more))
        for more in ({"zero": 1}, {"zero": 2}, {"zero": 3}, {"zero": 3, "offload": "optimizer"})
    )
    assert first.moments == plain.moments / 8
    assert first.masters == plain.masters / 8
    assert first.weights == second.weights == plain.weights
    assert second.gradients < first.gradients < plain.gradients
    assert third.weights == plain.weights / 8
    assert away.moments == away.masters == 0
    assert plain.total > first.total >= second.total > third.total


@pytest.mark.parametrize(
    # GB that torch's allocator gave out under DeepSpeed 0.19 in one process, where a stand-in for
    # the driver computed nothing.
    ("zero", "grad_cp", "seen"),
    [(1, False, 9.41), (2, False, 8.90), (2, True, 5.09), (3, False, 10.41), (3, True, 6.73)],
)
def test_what_a_step_under_deepspeed_holds(zero: int, grad_cp: bool, seen: float) -> None:
    model = ModelConfig(arch="x070", n_layer=12, n_embd=768)
    setup = Setup(model, 16, 512, torch.bfloat16, grad_cp, "cuda", fused=True)
    memory = estimate_memory(replace(setup, zero=zero, bucket=5e8))
    assert (memory.total - memory.reserve) / 1e9 == pytest.approx(seen, rel=0.03)


def test_the_buffers_that_a_file_gives_deepspeed() -> None:
    config = TrainConfig(
        micro_bsz=1, lr_init=1e-3, lr_final=1e-3, engine="deepspeed", deepspeed="zero2-overlap"
    )
    place = Placement(torch.device("cpu"), torch.bfloat16, ("", ""))
    assert reduce_bucket(choose_backend(config, place, 4)) == 2 * 5e8


def test_what_would_fit_fits() -> None:
    setup = setup_of("x070", (4, 128, 12, 160))
    limit = estimate_memory(setup).total * 0.5
    changes = would_fit(setup, limit)
    assert [text for text, _ in changes] == [
        "train.micro_bsz 4, train.accumulate_grad_batches 3",
        "train.grad_cp true",
    ]
    for _, changed in changes:
        assert estimate_memory(changed).total <= limit
        assert changed.samples == setup.samples
    assert would_fit(setup, 1000) == []
    [(text, _), *_] = would_fit(replace(setup, world=8, dtype=torch.bfloat16), limit / 20)
    assert "train.zero" in text


def test_the_step_model_knows_what_costs_time() -> None:
    """Faster with a kernel, compiled, on a faster card; slower where work is done twice."""
    model = ModelConfig(arch="x070", n_layer=24, n_embd=2048)
    setup = Setup(model, 8, 4096, torch.bfloat16)
    portable = estimate_speed(setup, H200, compiled=False)
    assert estimate_speed(replace(setup, impl="cuda"), H200, compiled=False) > portable
    assert estimate_speed(setup, H200, compiled=True) > portable
    compiled, fused = (
        estimate_speed(replace(setup, impl="cuda", fused=by_hand), H200, compiled=not by_hand)
        for by_hand in (False, True)
    )
    assert fused > compiled
    assert estimate_speed(replace(setup, grad_cp=True), H200, compiled=False) < portable
    assert estimate_speed(setup, Card(165, 1008), compiled=False) < portable
