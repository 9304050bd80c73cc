"""The loss from what the head reads: the same as from logits, without the logits."""

import pytest
import torch
from rwkv_cases import ARCHS, small_model, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rwkvkit.errors import UsageError
from rwkvkit.model import loss as loss_module
from rwkvkit.model.loss import every_token, head_loss, lm_loss
from rwkvkit.ops import cross_entropy as plain
from rwkvkit.train.footprint import Ledger

WIDTH, VOCAB = 12, 37


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCAB, (3, 7), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def mask_of(kind: str) -> Tensor | None:
    half = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) > 0.5
    masks = {"bool": half, "number": half * torch.linspace(0.1, 2, 21).view(3, 7)}
    return {**masks, "zeros": torch.zeros(3, 7), "none": None}[kind]


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.fixture(params=["one chunk", "many"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many":  # 5 tokens a chunk and 2 a block, neither of which divides 21
        monkeypatch.setattr(loss_module, "_CHUNK_CPU", 5 * VOCAB)
        monkeypatch.setattr(plain, "_BLOCK_CPU", 2 * VOCAB)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", ["none", "bool", "number", "zeros"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_value_and_gradients_are_those_of_lm_loss(
    dtype: torch.dtype, rtol: float, kind: str
) -> None:
    hidden, weight, targets = example(dtype)
    mask = mask_of(kind)
    for scale in (1.0, 1024.0):  # as accumulation and loss scaling have it
        want = lm_loss(hidden @ weight.mT, targets, mask)
        got = head_loss(hidden, weight, targets, mask)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=rtol, atol=0)
        for ours, theirs in zip(
            torch.autograd.grad(got * scale, (hidden, weight)),
            torch.autograd.grad(want * scale, (hidden, weight)),
            strict=True,
        ):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * scale)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_right_to_its_rounding(dtype: torch.dtype) -> None:
    hidden, weight, targets = example(dtype)
    precise = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    got = head_loss(hidden, weight, targets)
    want = lm_loss(precise[0] @ precise[1].mT, targets)
    assert got.dtype == torch.float32
    assert relative(got, want) < 2e-3
    for ours, theirs in zip(
        torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(want, precise), strict=True
    ):
        assert ours.dtype == dtype
        assert relative(ours, theirs) < (6e-3 if dtype == torch.bfloat16 else 1e-3)


def test_float16_gradients_survive_a_mean_over_many_tokens() -> None:
    """A share of 1/M in each logit's gradient would be rounded to zero before it is added up."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, 4, generator=generator).half().requires_grad_()
    weight = (0.01 * torch.randn(512, 4, generator=generator)).half().requires_grad_()
    targets = torch.randint(512, (4096,), generator=generator)
    precise = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    (head_loss(hidden, weight, targets) * 1024).backward()
    (lm_loss(precise[0] @ precise[1].mT, targets) * 1024).backward()
    assert relative(weight.grad, precise[1].grad) < 2e-3


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_a_gradient_nobody_wants_is_not_computed(wanted: tuple[bool, bool]) -> None:
    hidden, weight, targets = example()
    full = torch.autograd.grad(head_loss(hidden, weight, targets), (hidden, weight))
    for tensor, needed in zip((hidden, weight), wanted, strict=True):
        tensor.requires_grad_(needed)
    loss = head_loss(hidden, weight, targets)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for tensor, needed, want in zip((hidden, weight), wanted, full, strict=True):
        assert (tensor.grad is not None) == needed
        if needed:
            torch.testing.assert_close(tensor.grad, want)


def test_a_backward_pass_may_be_repeated() -> None:
    hidden, weight, targets = example()
    loss = head_loss(hidden, weight, targets)
    first = torch.autograd.grad(loss * 3, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, 3 * theirs)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation makes, and what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return result


def test_no_tensor_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(1000, 8), torch.randn(200, 8)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), torch.randint(200, (1000,)))
    monkeypatch.setattr(loss_module, "_CHUNK_CPU", 50 * 200)
    with Largest() as chunked:
        head_loss(*inputs).backward()
    with Largest() as whole:
        lm_loss(hidden @ weight.mT, inputs[2]).backward()
    assert whole.bytes == 1000 * 200 * 4
    assert chunked.bytes == 50 * 200 * 4
    assert chunked.products == 3 * 1000 / 50  # the logits are made once


def test_tokens_that_do_not_count_cost_nothing_and_spoil_nothing() -> None:
    hidden, weight, targets = example()
    mask = mask_of("bool")
    with torch.no_grad():
        hidden[~mask] = torch.inf
    with Largest() as seen:
        loss = head_loss(hidden, weight, targets, mask)
        loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()
    assert hidden.grad[~mask].count_nonzero() == 0
    assert seen.bytes == max(int(mask.sum()) * VOCAB, weight.numel(), hidden.numel()) * 8


def test_one_chunk_of_logits_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(1000, 8), torch.randn(200, 8)
    monkeypatch.setattr(loss_module, "_CHUNK_CPU", 100 * 200)
    monkeypatch.setattr(plain, "_BLOCK_CPU", 200)
    with Ledger() as seen:
        head_loss(hidden.requires_grad_(), weight, torch.randint(200, (1000,)))
    assert 100 * 200 * 4 < seen.peak < 2 * 100 * 200 * 4


@pytest.mark.parametrize("kind", ["bool", "number", "zeros"])
def test_with_every_token_nothing_waits_for_the_mask(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    hidden, weight, targets = example()
    mask = mask_of(kind)
    want = head_loss(hidden, weight, targets, mask)
    wanted = torch.autograd.grad(want, (hidden, weight))
    monkeypatch.setattr(Tensor, "nonzero", None)
    with every_token():
        got = head_loss(hidden, weight, targets, mask)
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_model_returns_its_loss(arch: str) -> None:
    model = small_model(arch)
    idx, targets = tokens(2, 9), tokens(2, 9, seed=4)
    mask, resets = tokens(2, 9, seed=5, vocab=2), tokens(2, 9, seed=6, vocab=4) == 0
    want = lm_loss(model(idx, None, resets), targets, mask)
    wanted = torch.autograd.grad(want, model.parameters())
    got = model.loss(idx, targets, mask, resets=resets)
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(torch.autograd.grad(got, model.parameters()), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    logits, after = model(idx, model.zero_state(2))
    loss, state = model.loss(idx, targets, state=model.zero_state(2))
    torch.testing.assert_close(loss, lm_loss(logits, targets))
    torch.testing.assert_close(state.wkv, after.wkv)


def test_head_qk_judges_its_own_logits() -> None:
    model = small_model("x060", head_qk=8)
    idx, targets = tokens(2, 9), tokens(2, 9, seed=4)
    torch.testing.assert_close(model.loss(idx, targets), lm_loss(model(idx), targets))


def test_the_weight_is_read_inside_the_heads_forward() -> None:
    """ZeRO-3 gathers a module's weights for its forward alone."""
    model = small_model("x070")
    whole = model.head.weight
    sliced = torch.nn.Parameter(whole.new_empty(0))

    def put(weight: Tensor):
        return lambda module, *_: setattr(module, "weight", weight)

    model.head.weight = sliced
    model.head.register_forward_pre_hook(put(whole))
    model.head.register_forward_hook(put(sliced))
    loss = model.loss(tokens(2, 5), tokens(2, 5, seed=4))
    assert torch.autograd.grad(loss, whole)[0].count_nonzero() > 0


def test_shapes_are_checked() -> None:
    hidden, weight, targets = example()
    with pytest.raises(UsageError, match=r"targets has shape \(3, 6\), hidden \(3, 7, 12\)"):
        head_loss(hidden, weight, targets[:, :6])
    with pytest.raises(UsageError, match="mask has shape"):
        head_loss(hidden, weight, targets, torch.ones(7))
    with pytest.raises(UsageError, match="head_weight has shape") as caught:
        head_loss(hidden, weight.mT, targets)
    assert "head_weight [V, C]" in str(caught.value)
