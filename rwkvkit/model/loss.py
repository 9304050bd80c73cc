"""The loss: cross entropy, with a pull on the largest logit in its gradient.

From logits (``lm_loss``), or from what the head reads (``head_loss``), which never holds the logits
of all tokens. M tokens (all leading dimensions together), C n_embd, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkvkit.errors import UsageError

L2WRAP = 1e-4
# Elements of float32 work at a time. On a CPU 4 MiB stay in cache and in the allocator's hands:
# three times as fast as 64 MiB (AMD EPYC). A GPU wants fewer, larger launches.
_BLOCK_CPU, _BLOCK_GPU = 1 << 20, 1 << 24
# Logits that head_loss holds: 64 MiB in float32 on a CPU; on a GPU 0.5 GiB in bfloat16, so that
# adding up the weight's gradient, 12 bytes an element a chunk, stays small beside the products.
_CHUNK_CPU, _CHUNK_GPU = 1 << 24, 1 << 28


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
    if mask is None:
        share = 1 / max(1, targets.numel())
        weights = torch.full(targets.shape, share, dtype=_wide(logits), device=logits.device)
    else:
        weights = mask.to(_wide(logits))
        weights = weights / _total(weights)
    rows = logits.reshape(-1, logits.shape[-1])
    return _Loss.apply(rows, targets.reshape(-1), weights.reshape(-1))


def head_loss(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return ``lm_loss(hidden @ head_weight.T, targets, mask)`` without holding the logits.

    A chunk of tokens at a time becomes logits, and these their own gradient in place, from which
    the gradients of both inputs follow at once: nothing is computed twice, and no tensor grows with
    M · V. The gradient of the weight adds up in float32. Tokens with weight 0 are left out before
    the head, so a mask saves their work (at the price of waiting for the device once).

    Args:
        hidden: what the head reads [..., C]; logits are made in its dtype, as the head makes them.
        head_weight: [V, C], of the same dtype.
        targets: int64 [...], every one a token id.
        mask: [...], see :func:`lm_loss`.

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
        weights = torch.ones(targets.shape, dtype=_wide(hidden), device=hidden.device)
    else:
        weights = mask.to(_wide(hidden)).reshape(-1)
        kept = weights.nonzero().squeeze(1)
        if len(kept) < len(weights):
            hidden, targets, weights = (x.index_select(0, kept) for x in (hidden, targets, weights))
    # Inside, tokens weigh what the mask says, and the mean comes last: in float16 the gradient of
    # a mean over many tokens would vanish.
    loss = _HeadLoss.apply(hidden, head_weight, targets, weights, torch.is_grad_enabled())
    return loss / _total(weights)


def workspace(tokens: int, width: int, vocab: int, dtype: torch.dtype, *, on_gpu: bool) -> int:
    """Return about how many bytes :func:`head_loss` needs beside its inputs, with gradients.

    Args:
        tokens: M.
        width: C.
        vocab: V.
        dtype: of the hidden values and the weight.
        on_gpu: whether they lie on a GPU.
    """
    size, wide = dtype.itemsize, max(4, dtype.itemsize)
    chunk = vocab * max(1, min(tokens, (_CHUNK_GPU if on_gpu else _CHUNK_CPU) // vocab))
    block = vocab * max(1, min(tokens, (_BLOCK_GPU if on_gpu else _BLOCK_CPU) // vocab))
    to_weight = vocab * width * (wide + (size if size < wide else 0))
    return chunk * size + 4 * block * wide + tokens * width * size + to_weight


def _check(name: str, inputs: Tensor, targets: Tensor, mask: Tensor | None, function: str) -> None:
    for other, tensor in (("targets", targets), ("mask", mask)):
        if tensor is not None and tensor.shape != inputs.shape[:-1]:
            raise UsageError(
                f"{other} has shape {tuple(tensor.shape)}, {name} {tuple(inputs.shape)}",
                where=function,
                hint=f"{name} are [B, T, {'V' if name == 'logits' else 'C'}], "
                "targets and mask [B, T]",
            )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


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
        for rows in _blocks(logits):
            block = logits[rows].to(weights.dtype)
            norms[rows], ce[rows] = _cross_entropy(block, targets[rows])
        ctx.save_for_backward(logits, targets, weights, norms)
        return (ce.masked_fill(weights == 0, 0) * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, weights, norms = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for rows in _blocks(logits):
            block = logits[rows].to(weights.dtype)
            share = grad * weights[rows, None]
            part = _gradient(block, norms[rows], targets[rows]) * share
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
        with_gradients: bool,
    ) -> Tensor:
        to_hidden, to_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight = torch.zeros_like(head_weight, dtype=weights.dtype) if to_weight else None
        ce = torch.empty_like(weights)
        chunk = _CHUNK_CPU if hidden.device.type == "cpu" else _CHUNK_GPU
        for rows in _slices(len(hidden), chunk // len(head_weight)):
            logits = hidden[rows] @ head_weight.mT
            ce[rows] = _judge(logits, targets[rows], weights[rows], to_hidden or to_weight)
            if grad_hidden is not None:
                torch.mm(logits, head_weight, out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == logits.dtype:
                grad_weight.addmm_(logits.mT, hidden[rows])
            elif grad_weight is not None:
                grad_weight += logits.mT @ hidden[rows]
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
        return (*gradients, None, None, None)


def _judge(logits: Tensor, targets: Tensor, weights: Tensor, with_gradient: bool) -> Tensor:
    """Return the cross entropies [M]; put their weighted gradient in the place of the logits."""
    ce = torch.empty_like(weights)
    for rows in _blocks(logits):
        block = logits[rows].to(weights.dtype)
        norms, ce[rows] = _cross_entropy(block, targets[rows])
        if with_gradient:
            logits[rows] = _gradient(block, norms, targets[rows]) * weights[rows, None]
    return ce


def _cross_entropy(block: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of each row's normaliser, and its cross entropy; both [M]."""
    norms = block.logsumexp(-1)
    return norms, norms - block.gather(-1, targets[:, None]).squeeze(-1)


def _gradient(block: Tensor, norms: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each row's cross entropy, with the pull: softmax - onehot + pull [M, V]."""
    largest, where = block.max(-1, keepdim=True)
    part = torch.exp(block - norms[:, None])
    part.scatter_add_(-1, targets[:, None], torch.full_like(largest, -1.0))
    return part.scatter_add_(-1, where, L2WRAP * largest)


def _blocks(logits: Tensor) -> list[slice]:
    """Cut rows so that a block holds about as many elements as suit the device."""
    elements = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_GPU
    return _slices(len(logits), elements // logits.shape[-1])


def _slices(rows: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(start, start + step) for start in range(0, rows, step)]
