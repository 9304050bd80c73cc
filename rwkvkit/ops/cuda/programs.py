"""The programs that training of the published sizes runs: head size 64, bf16."""

import torch

from rwkvkit.ops.cuda import cross_entropy, elementwise_kernels, wkv6_kernels, wkv7_kernels
from rwkvkit.ops.cuda.compile import Program

_HEAD_SIZE = 64


def programs() -> tuple[Program, ...]:
    """Return them: WKV on tensor cores (with and without resets) and in fp32, and all others."""
    found = {
        **dict.fromkeys(
            program
            for resets in (False, True)
            for shape in (
                wkv7_kernels.Shape(_HEAD_SIZE, resets=resets),
                wkv6_kernels.Shape(_HEAD_SIZE, resets=resets),
            )
            for program in (shape.forward_program(), shape.backward_program())
        ),
        wkv7_kernels.precise_program(_HEAD_SIZE): None,
        wkv6_kernels.precise_program(_HEAD_SIZE): None,
        **dict.fromkeys(elementwise_kernels.published_programs()),
        cross_entropy.program(torch.bfloat16): None,
    }
    return tuple(found)
