"""The cross entropy kernel as a torch operator; on a CPU the same in plain PyTorch.

M tokens, V vocabulary.
"""

import torch
from torch import Tensor

from rwkvkit.ops import cross_entropy as plain
from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda.compile import Program

_THREADS = 512
_SHARED_BYTES = _THREADS // 32 * 12


@torch.library.custom_op("rwkvkit::cross_entropy", mutates_args=("logits",))
def judge(
    logits: Tensor, targets: Tensor, weights: Tensor, pull: float, with_gradient: bool
) -> Tensor:
    """Return cross entropies; put their weighted gradient in the place of the logits.

    Not differentiable: the gradient is what it computes.

    Args:
        logits: contiguous [M, V] in bf16 or fp16; any V. On a CPU also fp32 and fp64.
        targets: int64 [M]; on a GPU one that is no token id gives a loss of NaN.
        weights: of the gradients, fp32 [M]; with weight 0 the gradient is 0. On a GPU so is the
            loss, and the logits may be anything.
        pull: what the gradient has in addition at each row's first largest logit, times that logit.
        with_gradient: whether to; else the logits stay.

    Returns:
        The cross entropies, fp32 [M], not weighted.
    """
    if not logits.is_cuda:
        return plain.judge(logits, targets, weights, pull, with_gradient)
    rows, vocab = logits.shape
    losses = torch.empty_like(weights)
    if rows:
        launch.launch(
            program(logits.dtype),
            "cross_entropy",
            (rows, 1, 1),
            _THREADS,
            _SHARED_BYTES,
            vocab,
            int(with_gradient),
            pull,
            logits,
            targets,
            weights,
            losses,
            alignment=1,
        )
    return losses


@judge.register_fake
def _(logits: Tensor, targets: Tensor, weights: Tensor, pull: float, with_gradient: bool) -> Tensor:
    return torch.empty_like(weights)


def program(dtype: torch.dtype) -> Program:
    """Return the program for logits in bf16 or fp16."""
    defines = (("THREADS", _THREADS), ("SHARED_BYTES", _SHARED_BYTES))
    fp16 = (("ELEMENT_FP16", 1),) if dtype == torch.float16 else ()
    return Program("cross_entropy.cu", defines + fp16)


def programs() -> dict[str, Program]:
    """Return every program that the operator can ask for, by a name that says what it is for."""
    return {
        f"cross entropy {name}": program(dtype)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    }
