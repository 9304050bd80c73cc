"""Section of ``gpu_check.py``: the shapes that the WKV kernels can be compiled in, timed.

What the operators take is marked ``usual``. B batch, T tokens, H heads, N head size.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from gpu_operators import inputs_of
from gpu_timing import Row, timed
from torch import Tensor

from rwkvkit.ops.cuda import wkv6_kernels, wkv7_kernels

_SHAPE, _TINY_SHAPE = (8, 4096, 64, 64), (1, 40, 1, 64)
_WKV7 = {
    "wkv7 usual": wkv7_kernels.Shape(64),
    "wkv7 one buffer, 4 blocks": wkv7_kernels.Shape(64, buffers=1),
    "wkv7 a checkpoint in 4 chunks": wkv7_kernels.Shape(64, checkpoint_chunks=4),
}
_WKV6 = {
    "wkv6 usual": wkv6_kernels.Shape(64),
    "wkv6 a checkpoint in 2 chunks": wkv6_kernels.Shape(64, spacing=2),
    "wkv6 sides apart": wkv6_kernels.Shape(64, split=True),
}


def variants(settings: argparse.Namespace) -> Iterator[Row]:
    """Forward alone, and forward with backward, of each variant."""
    shape = _TINY_SHAPE if settings.tiny else _SHAPE
    generator = torch.Generator(settings.device).manual_seed(0)
    for operator, known, bind in (("wkv7", _WKV7, _wkv7), ("wkv6", _WKV6, _wkv6)):
        tensors = inputs_of(operator, shape, generator)
        inputs = [x.bfloat16() if x.dim() == 4 else x for x in tensors]
        dy = torch.randn(shape, generator=generator, device=settings.device).bfloat16()
        for name, variant in known.items():
            forward, both = bind(variant, inputs, dy)
            yield {"what": f"{name}, forward", **timed(forward, settings)}
            yield {"what": f"{name}, both", **timed(both, settings)}


def _wkv7(
    variant: wkv7_kernels.Shape, inputs: list[Tensor], dy: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    vectors = tuple(inputs)

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        return wkv7_kernels.forward(variant, vectors, None, None, None, keep=True)

    def both() -> object:
        kept = forward()[-1]
        return wkv7_kernels.backward(
            variant, vectors, dy, None, None, kept, None, want_state=False, want_origin=False
        )

    return forward, both


def _wkv6(
    variant: wkv6_kernels.Shape, inputs: list[Tensor], dy: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    def forward() -> tuple[Tensor, Tensor, Tensor]:
        return wkv6_kernels.forward(variant, *inputs, None, None, keep=True)

    def both() -> object:
        kept = forward()[-1]
        return wkv6_kernels.backward(variant, *inputs, None, kept, dy, None, want_state=False)

    return forward, both
