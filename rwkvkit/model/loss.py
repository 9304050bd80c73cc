"""The loss: cross entropy, with a pull on the largest logit in its gradient.

From logits (``lm_loss``), or from what the head reads (``head_loss``), which never holds the logits
of all tokens. M tokens (all leading dimensions together), C n_embd, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkvkit.errors import UsageError
from rwkvkit.ops import cross_entropy as plain
from rwkvkit.ops.cuda import cross_entropy as kernel
from rwkvkit.ops.inputs import Impl, compute_dtype

L2WRAP = 1e-4
# Logits that head_loss holds: 64 MiB in float32 on a CPU; on a GPU 0.5 GiB in bfloat16, so that
# adding up the weight's gradient, 12 bytes an element a chunk, stays small beside the products.
_CHUNK_CPU, _CHUNK_GPU = 1 << 24, 1 << 28
_every_token = ContextVar("every_token", default=False)


def lm_loss(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy; its gradient also pulls each token's largest logit to zero.

    The pull is the reference's L2Wrap: at each token's largest logit, and only there, the gradient
    has ``1e-4 · largest logit · weight`` in addition, where ``weight`` is the token's share of the
    mean. It keeps logits from drifting; the value returned is the plain cross entropy.

    Args:
        logits: [..., V], any floating dtype; computed in float32 (float64 stays float64).
        targets: int64 [...], every one a token id, also where the mask is 0.
        mask: [...], the weight of each token, bool or number, >= 0; None: all equal. A token with
            weight 0 contributes nothing to value or gradient, and a mask of zeros gives loss 0.

    Returns:
        ``sum(ce · mask) / sum(mask)``, a scalar in the precision of the computation.

    Raises:
        UsageError: the shapes do not fit together.
    """
    _check("logits", logits, targets, mask, "lm_loss")
    dtype = compute_dtype(logits)
    if mask is None:
        share = 1 / max(1, targets.numel())
        weights = torch.full(targets.shape, share, dtype=dtype, device=logits.device)
    else:
        weights = mask.to(dtype)
        weights = weights / _total(weights)
    rows = logits.reshape(-1, logits.shape[-1])
    return _Loss.apply(rows, targets.reshape(-1), weights.reshape(-1))


def head_loss(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``lm_loss(hidden @ head_weight.T, targets, mask)`` without holding the logits.

    A chunk of tokens at a time becomes logits, and these their own gradient in place, from which
    the gradients of both inputs follow at once: nothing is computed twice, and no tensor grows with
    M · V. The gradient of the weight adds up in float32. Tokens with weight 0 are left out before
    the head, so a mask saves their work (at the price of waiting for the device once, so not within
    :func:`every_token`).

    Args:
        hidden: what the head reads [..., C]; logits are made in its dtype, as the head makes them.
        head_weight: [V, C], of the same dtype.
        targets: int64 [...], every one a token id.
        mask: [...], see :func:`lm_loss`.
        impl: the model's WKV operator: where it is a kernel, so is the cross entropy on a GPU.

    Returns:
        A scalar in float32 (float64 stays float64), as :func:`lm_loss` does.

    Raises:
        UsageError: the shapes do not fit together.
    """
    _check("hidden", hidden, targets, mask, "head_loss")
    if head_weight.dim() != 2 or head_weight.shape[1] != hidden.shape[-1]:
        raise UsageError(
            f"head_weight has shape {tuple(head_weight.shape)}, hidden {tuple(hidden.shape)}",
            where="head_loss",
            hint="hidden is [B, T, C], head_weight [V, C]",
        )
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if mask is None:
        weights = torch.ones(targets.shape, dtype=compute_dtype(hidden), device=hidden.device)
    else:
        weights = mask.to(compute_dtype(hidden)).reshape(-1)
        kept = None if _every_token.get() else weights.nonzero().squeeze(1)
        if kept is not None and len(kept) < len(weights):
            hidden, targets, weights = (x.index_select(0, kept) for x in (hidden, targets, weights))
    # Inside, tokens weigh what the mask says, and the mean comes last: in float16 the gradient of
    # a mean over many tokens would vanish.
    choice = plain.choose(impl, hidden.device, hidden.dtype)
    judge = kernel.judge if choice.impl == "cuda" else plain.judge
    loss = _HeadLoss.apply(hidden, head_weight, targets, weights, judge, torch.is_grad_enabled())
    return loss / _total(weights)


@contextmanager
def every_token() -> Iterator[None]:
    """Let :func:`head_loss` leave no token out: a CUDA graph cannot depend on a mask's values."""
    before = _every_token.set(True)
    try:
        yield
    finally:
        _every_token.reset(before)


def workspace(
    tokens: int,
    width: int,
    vocab: int,
    dtype: torch.dtype,
    *,
    on_gpu: bool,
    fused: bool,
    trained: bool,
) -> int:
    """Return about how many bytes :func:`head_loss` needs beside its inputs, with gradients.

    Args:
        tokens: M.
        width: C.
        vocab: V.
        dtype: of the hidden values and the weight.
        on_gpu: whether they lie on a GPU.
        fused: whether a kernel judges the logits; plain PyTorch works on float32 copies of some.
        trained: whether the weight gets a gradient.
    """
    size, wide = dtype.itemsize, max(4, dtype.itemsize)
    chunk = vocab * min(tokens, _chunk_rows(vocab, on_gpu=on_gpu))
    block = 0 if fused else vocab * min(tokens, plain.block_rows(vocab, on_gpu=on_gpu))
    to_weight = vocab * width * (wide + (size if size < wide else 0)) if trained else 0
    return chunk * size + 4 * block * wide + tokens * width * size + to_weight


def traffic(tokens: int, width: int, vocab: int, *, fused: bool) -> float:
    """Return about how many bytes :func:`head_loss` moves on a GPU in 16 bits, but in its products.

    Args:
        tokens: M.
        width: C.
        vocab: V.
        fused: see :func:`workspace`.
    """
    chunks = -(-tokens // _chunk_rows(vocab, on_gpu=True))
    judging = 6 if fused else 64  # two reads and a write; ten passes, most in float32
    adding_up = 12  # written in 16 bits, read, and added to what is there in 32
    return judging * tokens * vocab + adding_up * chunks * vocab * width


def _check(name: str, inputs: Tensor, targets: Tensor, mask: Tensor | None, function: str) -> None:
    for other, tensor in (("targets", targets), ("mask", mask)):
        if tensor is not None and tensor.shape != inputs.shape[:-1]:
            raise UsageError(
                f"{other} has shape {tuple(tensor.shape)}, {name} {tuple(inputs.shape)}",
                where=function,
                hint=f"{name} are [B, T, {'V' if name == 'logits' else 'C'}], "
                "targets and mask [B, T]",
            )


def _total(weights: Tensor) -> Tensor:
    """The sum of the weights, and 1 where it is 0: the mean over no token is 0."""
    total = weights.sum()
    return torch.where(total > 0, total, torch.ones_like(total))


class _Loss(torch.autograd.Function):
    """Works on blocks of tokens, so the only tensor of the logits' size is their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        norms = torch.empty_like(weights)
        ce = torch.empty_like(weights)
        for rows in plain.blocks(logits):
            block = logits[rows].to(weights.dtype)
            norms[rows], ce[rows] = plain.cross_entropy(block, targets[rows])
        ctx.save_for_backward(logits, targets, weights, norms)
        return (ce.masked_fill(weights == 0, 0) * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, weights, norms = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for rows in plain.blocks(logits):
            block = logits[rows].to(weights.dtype)
            share = grad * weights[rows, None]
            part = plain.gradient(block, norms[rows], targets[rows], L2WRAP) * share
            grad_logits[rows] = part.masked_fill(share == 0, 0)
        return grad_logits, None, None


class _HeadLoss(torch.autograd.Function):
    """The weighted sum of the cross entropies; its gradients are ready when it is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        judge: Callable[..., Tensor],
        with_gradients: bool,
    ) -> Tensor:
        to_hidden, to_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight = torch.zeros_like(head_weight, dtype=weights.dtype) if to_weight else None
        ce = torch.empty_like(weights)
        step = _chunk_rows(len(head_weight), on_gpu=hidden.device.type != "cpu")
        for rows in plain.slices(len(hidden), step):
            logits = hidden[rows] @ head_weight.mT
            wanted = to_hidden or to_weight
            ce[rows] = judge(logits, targets[rows], weights[rows], L2WRAP, wanted)
            if grad_hidden is not None:
                torch.mm(logits, head_weight, out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == logits.dtype:
                grad_weight.addmm_(logits.mT, hidden[rows])
            elif grad_weight is not None:
                grad_weight += logits.mT @ hidden[rows]
            del logits  # not beside the next chunk's
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = hidden.dtype
        return (ce * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if x is None else torch.mul(x, grad, out=torch.empty_like(x, dtype=ctx.dtype))
            for x in ctx.saved_tensors
        ]
        return (*gradients, None, None, None, None)


def _chunk_rows(vocab: int, *, on_gpu: bool) -> int:
    return max(1, (_CHUNK_GPU if on_gpu else _CHUNK_CPU) // vocab)
