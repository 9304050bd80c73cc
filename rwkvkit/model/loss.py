"""The loss: cross entropy, with a pull on the largest logit in its gradient.

M tokens (all leading dimensions together), V vocabulary.
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
    for name, tensor in (("targets", targets), ("mask", mask)):
        if tensor is not None and tensor.shape != logits.shape[:-1]:
            raise UsageError(
                f"{name} has shape {tuple(tensor.shape)}, logits {tuple(logits.shape)}",
                where="lm_loss",
                hint="logits are [B, T, V], targets and mask [B, T]",
            )
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if mask is None:
        weights = torch.full(
            targets.shape, 1 / max(1, targets.numel()), dtype=wide, device=logits.device
        )
    else:
        mask = mask.to(wide)
        total = mask.sum()
        weights = mask / torch.where(total > 0, total, torch.ones_like(total))
    rows = logits.reshape(-1, logits.shape[-1])
    return _Loss.apply(rows, targets.reshape(-1), weights.reshape(-1))


class _Loss(torch.autograd.Function):
    """Works on blocks of tokens, so the only tensor of the logits' size is their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        norms = torch.empty_like(weights)
        ce = torch.empty_like(weights)
        for rows in _blocks(logits):
            block = logits[rows].to(weights.dtype)
            norms[rows] = block.logsumexp(-1)
            ce[rows] = norms[rows] - block.gather(-1, targets[rows, None]).squeeze(-1)
        ctx.save_for_backward(logits, targets, weights, norms)
        return (ce.masked_fill(weights == 0, 0) * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, weights, norms = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for rows in _blocks(logits):
            block = logits[rows].to(weights.dtype)
            largest, where = block.max(-1, keepdim=True)
            pull = L2WRAP * largest
            part = torch.exp(block - norms[rows, None])
            part.scatter_add_(-1, targets[rows, None], torch.full_like(largest, -1.0))
            part.scatter_add_(-1, where, pull)
            share = grad * weights[rows, None]
            grad_logits[rows] = (part * share).masked_fill(share == 0, 0)
        return grad_logits, None, None


def _blocks(logits: Tensor) -> list[slice]:
    """Cut M tokens so that a block of rows holds about as many elements as suit the device."""
    elements = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_GPU
    step = max(1, elements // logits.shape[-1])
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]
