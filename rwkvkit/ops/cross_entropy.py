"""Cross entropy of logits and its gradient in their place: which implementation, and the plain one.

M tokens, V vocabulary.
"""

import torch
from torch import Tensor

from rwkvkit.ops.inputs import Choice, kernel_obstacle, too_old_for

# Elements of float32 work at a time. On a CPU 4 MiB stay in cache and in the allocator's hands:
# three times as fast as 64 MiB (AMD EPYC). A GPU wants fewer, larger launches.
_BLOCK_CPU, _BLOCK_GPU = 1 << 20, 1 << 24


def choose(wkv: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """Say whether the kernel or plain PyTorch judges the logits, and why.

    Args:
        wkv: the WKV operator; ``chunked`` and ``naive`` say that kernels are not wanted.
        device: of the logits.
        dtype: of the logits.
    """
    if obstacle := _obstacle(wkv, device, dtype):
        return Choice("plain", f"cross entropy plain: PyTorch, {obstacle}")
    return Choice("cuda", "cross entropy cuda: one kernel, also for its gradient")


def _obstacle(wkv: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type}"
    if wkv in ("chunked", "naive"):
        return f"wkv {wkv} does without kernels"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its kernel is for bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    if obstacle := kernel_obstacle(device):
        return obstacle
    if too_old_for(device, dtype):
        return "its kernel begins with sm_80, for fp16 with sm_75"
    return None


def judge(
    logits: Tensor, targets: Tensor, weights: Tensor, pull: float, with_gradient: bool
) -> Tensor:
    """Return the cross entropies [M]; put their weighted gradient in the place of the logits.

    Args:
        logits: [M, V], any floating dtype.
        targets: int64 [M].
        weights: of the gradients [M], in the precision of the computation.
        pull: what the gradient has in addition at each row's first largest logit, times that logit.
        with_gradient: whether to; else the logits stay.
    """
    ce = torch.empty_like(weights)
    for rows in blocks(logits):
        block = logits[rows].to(weights.dtype)
        norms, ce[rows] = cross_entropy(block, targets[rows])
        if with_gradient:
            logits[rows] = gradient(block, norms, targets[rows], pull) * weights[rows, None]
    return ce


def cross_entropy(block: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of each row's normaliser, and its cross entropy; both [M]."""
    norms = block.logsumexp(-1)
    return norms, norms - block.gather(-1, targets[:, None]).squeeze(-1)


def gradient(block: Tensor, norms: Tensor, targets: Tensor, pull: float) -> Tensor:
    """The gradient of each row's cross entropy, with the pull: softmax - onehot + pull [M, V]."""
    largest, where = block.max(-1, keepdim=True)
    part = torch.exp(block - norms[:, None])
    part.scatter_add_(-1, targets[:, None], torch.full_like(largest, -1.0))
    return part.scatter_add_(-1, where, pull * largest)


def blocks(logits: Tensor) -> list[slice]:
    """Cut rows so that a block holds about as many elements as suit the device."""
    return slices(len(logits), block_rows(logits.shape[-1], on_gpu=logits.device.type != "cpu"))


def block_rows(vocab: int, *, on_gpu: bool) -> int:
    """Return the rows of a block."""
    return max(1, (_BLOCK_GPU if on_gpu else _BLOCK_CPU) // vocab)


def slices(rows: int, step: int) -> list[slice]:
    """Cut ``rows`` into runs of ``step``."""
    return [slice(start, start + step) for start in range(0, rows, step)]
