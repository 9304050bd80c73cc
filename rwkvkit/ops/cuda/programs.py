"""The programs that training of the published sizes runs: head size 64."""

import re

import torch

from rwkvkit.ops.cuda import cross_entropy, elementwise_kernels, wkv6_kernels, wkv7_kernels
from rwkvkit.ops.cuda.compile import Program

_HEAD_SIZE = 64


def programs(arch: str) -> tuple[Program, ...]:
    """Return them: WKV on tensor cores (with and without resets) and in fp32, and all others.

    Args:
        arch: such as ``sm_90a``. Older than ``sm_80`` tensor cores take fp16, and no WKV6; newer
            ones bf16.
    """
    number = re.match(r"sm_(\d+)", arch)
    fp16 = number is not None and int(number.group(1)) < 80
    found: list[Program] = []
    for resets in (False, True):
        seven = wkv7_kernels.usual_shape(_HEAD_SIZE, fp16=fp16, resets=resets)
        found += [seven.forward_program(), seven.backward_program()]
        if not fp16:
            six = wkv6_kernels.Shape(_HEAD_SIZE, resets=resets)
            found += [six.forward_program(), six.backward_program()]
    return (
        *found,
        wkv7_kernels.precise_program(_HEAD_SIZE),
        wkv6_kernels.precise_program(_HEAD_SIZE),
        *elementwise_kernels.published_programs(fp16=fp16),
        cross_entropy.program(torch.float16 if fp16 else torch.bfloat16),
    )
