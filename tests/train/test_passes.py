"""What a batch of packed documents, or of long ones, gives: losses, states and gradients."""

import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkvkit import BinidxWriter, open_binidx
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights
from rwkvkit.model.rwkv import RWKV
from rwkvkit.model.state import State
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.orders import make_samples
from rwkvkit.train.passes import loss_count, losses
from rwkvkit.train.sampling import SamplingConfig

ARCHS = ("x052", "x060", "x070")
VOCAB, CTX = 50, 12

each_arch = pytest.mark.parametrize("arch", ARCHS)


def model_of(arch: str, dtype: torch.dtype = torch.float64, **more: Any) -> RWKV:
    shape = {"n_layer": 2, "n_embd": 32, "head_size": 16, "vocab_size": VOCAB}
    config = ModelConfig(**{"arch": arch, **shape, **more})
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: tensor + 0.15 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in init_weights(config, 1).items()
    }
    return build_model(config, weights, dtype=dtype)


def gradients(model: RWKV) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-12, msg=name)


def backward(model: RWKV, batch: Batch, truncate: int = 0) -> float:
    total = 0.0
    for part in losses(model, batch, truncate):
        part.backward()
        total += part.item()
    return total


@pytest.fixture
def documents(tmp_path: Path) -> list[tuple[Tensor, Tensor]]:
    """Tokens and masks of documents, written to a dataset."""
    rng = np.random.default_rng(0)
    made = []
    with BinidxWriter(tmp_path / "data", masked=True) as writer:
        for size in (4, 13, 7, 2, 5, 9, 3, 30, 6):
            tokens, mask = rng.integers(1, VOCAB, size), rng.integers(0, 2, size)
            writer.add(tokens, mask)
            made.append((torch.tensor(tokens), torch.tensor(mask)))
    return made


def samples(folder: Path, order: str, **more: int):
    return make_samples(
        SamplingConfig(order=order, **more),
        open_binidx(folder / "data"),
        ctx_len=CTX,
        vocab_size=VOCAB,
        global_batch=2,
        seed=0,
    )


@each_arch
@pytest.mark.parametrize("order", ["packed", "padded", "infctx"])
def test_a_pass_over_documents_equals_the_sum_over_documents_alone(
    tmp_path, documents, arch, order
) -> None:
    model = model_of(arch, time_state=True)
    counted = sum(mask[1:].sum().item() for _, mask in documents)
    size = 1000 if order == "infctx" else CTX
    whole = 0.0
    for tokens, mask in documents:
        for x, y, m in zip(
            tokens[:-1].split(size), tokens[1:].split(size), mask[1:].split(size), strict=True
        ):
            loss = model(x[None], None, None, y[None], m[None]) * m.sum() / counted
            loss.backward()
            whole += loss.item()
    want = gradients(model)

    made = samples(tmp_path, order, **({"segments": 3, "truncate": 0} if order == "infctx" else {}))
    got, seen = 0.0, 0
    while made.tokens(seen) < made.once:
        batch = made.read(1 + seen, 1)
        share = batch.counted / counted
        for part in losses(model, batch):
            (part * share).backward()
            got += part.item() * share
        seen += 1
    assert got == pytest.approx(whole, rel=1e-9)
    assert_same(gradients(model), want)


@each_arch
@pytest.mark.parametrize("order", ["packed", "padded"])
def test_what_does_not_count_contributes_nothing(tmp_path, documents, arch, order) -> None:
    model = model_of(arch)
    batch = samples(tmp_path, order).read(1, 4)
    loss = backward(model, batch)
    want = gradients(model)
    other = batch.y.masked_fill(batch.mask == 0, 7)
    behind = batch.mask.flip(1).cummax(1).values.flip(1) == 0  # nothing that counts comes after
    x = batch.x.masked_fill(behind, 9)
    assert not torch.equal(other, batch.y)
    assert not torch.equal(x, batch.x)
    assert backward(model, Batch(x, other, batch.mask, batch.resets)) == loss
    assert_same(gradients(model), want)
    nothing = Batch(batch.x, batch.y, torch.zeros_like(batch.mask), batch.resets)
    assert backward(model, nothing) == 0
    assert all(gradient.count_nonzero() == 0 for gradient in gradients(model).values())


def long_batch(segments: int, *, masked: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(2)
    shape = (2, segments * 6)
    x, y = (torch.randint(VOCAB, shape, generator=generator) for _ in range(2))
    mask = torch.randint(2, shape, generator=generator)
    resets = torch.rand(shape, generator=generator) < 0.06
    return Batch(x, y, mask, resets, segments) if masked else Batch(x, y, segments=segments)


@each_arch
@pytest.mark.parametrize("masked", [True, False])
def test_eight_segments_equal_one_long_forward(arch, masked) -> None:
    model = model_of(arch, time_state=True)
    batch = long_batch(8, masked=masked)
    whole, end = model(batch.x, model.zero_state(2), batch.resets, batch.y, batch.mask)
    whole.backward()
    want = gradients(model)

    states: list[State] = []
    model.register_forward_hook(lambda module, args, output: states.append(output[1]))
    assert backward(model, batch) == pytest.approx(whole.item(), rel=1e-12)
    assert_same(gradients(model), want)
    for ours, theirs in zip(states[7], end, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert backward(model, batch, truncate=3) == pytest.approx(whole.item(), rel=1e-12)
    assert any(
        not torch.allclose(gradient, want[name], rtol=1e-3)
        for name, gradient in gradients(model).items()
    )


@each_arch
def test_truncated_gradients_stop_between_runs_of_segments(arch) -> None:
    model = model_of(arch)
    batch = long_batch(6)
    assert [loss_count(batch, truncate) for truncate in (0, 1, 2, 4, 9)] == [1, 6, 3, 2, 1]
    backward(model, batch, truncate=2)
    got = gradients(model)
    state = model.zero_state(2)
    for run in zip(
        *(t.chunk(3, 1) for t in (batch.x, batch.resets, batch.y, batch.mask)), strict=True
    ):
        x, resets, y, mask = run
        loss, state = model(x, State(*(s.detach() for s in state)), resets, y, mask)
        (loss * mask.sum().double() / batch.mask.sum()).backward()
    assert_same(got, gradients(model))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, as operators make them and as they go."""

    def __init__(self, *there: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in there)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage.nbytes())
        return output

    def _gone(self, n_bytes: int) -> None:
        self.now -= n_bytes


def peak_bytes(model: RWKV, segments: int, truncate: int) -> int:
    batch = long_batch(segments)
    backward(model, long_batch(1))  # gradients are there from now on
    with LiveBytes(batch.x, batch.y, batch.mask, batch.resets) as live:
        for part in losses(model, batch, truncate):
            part.backward()
            del part
    return live.peak


def test_memory_is_flat_from_4_to_64_segments() -> None:
    model = model_of("x070", torch.float32, n_layer=1)
    few, many = (peak_bytes(model, segments, truncate=2) for segments in (4, 64))
    assert few > 100_000
    assert many < 1.02 * few
    state = sum(memory.nbytes for memory in model.zero_state(2))
    unbounded = peak_bytes(model, 64, truncate=0)
    assert many + 40 * state < unbounded < many + 90 * state  # one state a segment, no more


def test_the_engine_trains_on_segments(tmp_path, documents) -> None:
    config = TrainConfig(
        micro_bsz=1, lr_init=1e-3, lr_final=1e-3, sampling={"order": "infctx", "truncate": 1}
    )
    engine = TorchEngine(model_of("x070", torch.float32).train(), config)
    made = samples(tmp_path, "infctx")
    batches = [made.read(1 + 2 * step, 2) for step in range(6)]
    found = [
        engine.step(batch, lr=3e-3, weight_decay=0.0).loss
        for batch in itertools.chain(*[batches] * 6)
    ]
    assert np.mean(found[-6:]) < 0.8 * np.mean(found[:6])
