import pytest
import torch
from torch.nn import functional as F

from rwkvkit.errors import UsageError
from rwkvkit.model.loss import lm_loss
from rwkvkit.ops import cross_entropy as plain


def example(dtype=torch.float64, vocab=11):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 7, vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (2, 7), generator=generator)
    return logits.to(dtype).requires_grad_(), targets


def expected_gradient(logits, targets, weights):
    """Cross entropy by autograd, and the pull on the largest logit written out."""
    logits = logits.detach().requires_grad_()
    ce = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 7)
    (grad,) = torch.autograd.grad((ce * weights).sum(), logits)
    largest, where = logits.detach().max(-1, keepdim=True)
    return grad.scatter_add(-1, where, 1e-4 * largest * weights[..., None])


def test_value_is_the_cross_entropy():
    logits, targets = example()
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(lm_loss(logits, targets), want)


def test_gradient_has_the_pull_and_scales_with_what_comes_in():
    logits, targets = example()
    want = expected_gradient(logits, targets, torch.full((2, 7), 1 / 14).double())
    for scale in (1.0, 0.25, 1024.0):
        (got,) = torch.autograd.grad(lm_loss(logits, targets) * scale, logits)
        torch.testing.assert_close(got, want * scale)


@pytest.mark.parametrize("weights", [torch.bool, torch.float32])
def test_mask(weights):
    logits, targets = example()
    mask = torch.rand(2, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    mask = mask if weights is torch.bool else mask * torch.linspace(0.1, 2, 14).view(2, 7)
    share = mask.double() / mask.double().sum()
    ce = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 7)
    value = lm_loss(logits, targets, mask)
    torch.testing.assert_close(value, (ce * share).sum())
    (got,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(got, expected_gradient(logits, targets, share))
    assert got[~mask.bool()].count_nonzero() == 0


def test_a_mask_of_ones_is_no_mask():
    logits, targets = example()
    plain, masked = lm_loss(logits, targets), lm_loss(logits, targets, torch.ones(2, 7))
    torch.testing.assert_close(plain, masked)
    for got, want in zip(
        torch.autograd.grad(masked, logits), torch.autograd.grad(plain, logits), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_a_mask_of_zeros_gives_zero():
    logits, targets = example()
    value = lm_loss(logits, targets, torch.zeros(2, 7))
    assert value.item() == 0
    assert torch.autograd.grad(value, logits)[0].count_nonzero() == 0


def test_a_masked_token_cannot_spoil_the_rest():
    logits, targets = example()
    mask = torch.ones(2, 7)
    mask[0, 3] = 0
    with torch.no_grad():
        logits[0, 3, 2] = float("inf")
    value = lm_loss(logits, targets, mask)
    assert value.isfinite()
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_blocks_of_tokens_change_nothing(monkeypatch):
    logits, targets = example()
    whole = lm_loss(logits, targets)
    want = torch.autograd.grad(whole, logits)[0]
    monkeypatch.setattr(plain, "_BLOCK_CPU", 33)
    blocked = lm_loss(logits, targets)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, logits)[0], want)


def test_bfloat16_logits_are_read_in_float32():
    logits, targets = example(torch.bfloat16)
    value = lm_loss(logits, targets)
    assert value.dtype == torch.float32
    precise = logits.detach().float().requires_grad_()
    want = lm_loss(precise, targets)
    torch.testing.assert_close(value, want)
    (got,) = torch.autograd.grad(value, logits)
    assert torch.equal(got, torch.autograd.grad(want, precise)[0].bfloat16())


def test_shapes_are_checked():
    logits, targets = example()
    with pytest.raises(UsageError, match=r"targets has shape \(2, 6\)"):
        lm_loss(logits, targets[:, :6])
    with pytest.raises(UsageError, match="mask has shape"):
        lm_loss(logits, targets, torch.ones(7))
