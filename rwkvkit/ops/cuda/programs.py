"""The programs that training of the published sizes runs: head size 64, bf16, with resets."""

from rwkvkit.ops.cuda import wkv6_kernels, wkv7_kernels
from rwkvkit.ops.cuda.compile import Program

_HEAD_SIZE = 64


def programs() -> tuple[Program, ...]:
    """Return them."""
    wkv6 = wkv6_kernels.Shape(_HEAD_SIZE, resets=True)
    wkv7 = wkv7_kernels.Shape(_HEAD_SIZE, resets=True)
    return (
        wkv6.forward_program(),
        wkv6.backward_program(),
        wkv6_kernels.precise_program(_HEAD_SIZE),
        wkv7.forward_program(),
        wkv7.backward_program(),
        wkv7_kernels.precise_program(_HEAD_SIZE),
    )
