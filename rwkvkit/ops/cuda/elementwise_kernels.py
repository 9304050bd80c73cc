"""Start RWKV-7's elementwise kernels: allocate what they write, and choose their macros.

B batch, T tokens, C n_embd, H heads, N head size. Vectors are contiguous, in bf16 or fp16.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda.compile import Program

_ROW_SUMS = {"norm_gate.cu": 3, "key_preparation.cu": 4, "residual_value.cu": 1}
"""Files of :func:`row_program`, with the sums over the tokens that their backward kernels make."""
_THREADS = 256
_PIECE = 8  # channels a thread: 16 bytes
_ROWS = 8  # tokens a thread


def _program(file: str, *, width: int = 64, fp16: bool = False, **more: int) -> Program:
    defines = {"WIDTH": width, "MIN_BLOCKS": 2, **more, **({"ELEMENT_FP16": 1} if fp16 else {})}
    return Program(file, tuple(defines.items()))


def _grid(rows: int, channels: int, width: int = 64) -> tuple[int, int, int]:
    """Blocks along the channels and along the rows; a row is a token of a sequence."""
    return channels // width, -(-rows // _block_rows(width)), 1


def _block_rows(width: int) -> int:
    return _THREADS // (width // _PIECE) * _ROWS


def _sums_bytes(sums: int, width: int) -> int:
    """Shared memory of sums over the rows of a block: one of each a warp and channel."""
    return _THREADS // 32 * sums * width * 4


def _partial(x: Tensor, sums: int, width: int = 64) -> Tensor:
    """What the blocks along the rows sum up, fp32 [blocks, sums, C]."""
    channels = x.shape[2:].numel()
    blocks = _grid(x.shape[:2].numel(), channels, width)[1]
    return x.new_empty(blocks, sums, channels, dtype=torch.float32)


def takes(x: Tensor) -> bool:
    """Whether the kernels work on such tensors."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


def is_half(x: Tensor) -> bool:
    """Whether a tensor is fp16; the kernels take bf16 otherwise."""
    return x.dtype == torch.float16


def shift_mix_program(mixes: int, *, fp16: bool = False) -> Program:
    """Return the token-shift mix with one or six weights a channel."""
    shared = _sums_bytes(mixes, 64) + (_block_rows(64) // _ROWS + 1) * 64 * 4
    return _program("shift_mix.cu", fp16=fp16, MIXES=mixes, SHARED_BYTES=shared)


def _six(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    return [*tensors, *[None] * (6 - len(tensors))]


def shift_mix_forward(
    x: Tensor, last: Tensor | None, resets: Tensor | None, mixes: Sequence[Tensor]
) -> list[Tensor]:
    """Run the forward kernel; see ``rwkvkit.ops.elementwise.shift_mix``."""
    batch, tokens, channels = x.shape
    out = [torch.empty_like(x) for _ in mixes]
    launch.launch(
        shift_mix_program(len(mixes), fp16=is_half(x)),
        "shift_mix_forward",
        _grid(batch * tokens, channels),
        _THREADS,
        0,
        batch * tokens,
        tokens,
        channels,
        x,
        last,
        resets,
        *_six(mixes),
        *_six(out),
    )
    return out


def shift_mix_backward(
    x: Tensor,
    last: Tensor | None,
    resets: Tensor | None,
    mixes: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    want_mixes: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the backward kernel.

    Args:
        x: as in the forward pass; so are last, resets and mixes.
        last: see there.
        resets: see there.
        mixes: see there.
        grads: of the outputs.
        want_mixes: sum up the gradients of the mixes.

    Returns:
        The gradients of x, of last if it is given, and of the mixes as one fp32 [M, C].
    """
    batch, tokens, channels = x.shape
    program = shift_mix_program(len(mixes), fp16=is_half(x))
    dx = torch.empty_like(x)
    dlast = None if last is None else torch.empty_like(last)
    partial = _partial(x, len(mixes)) if want_mixes else None
    launch.launch(
        program,
        "shift_mix_backward",
        _grid(batch * tokens, channels),
        _THREADS,
        dict(program.defines)["SHARED_BYTES"],
        batch * tokens,
        tokens,
        channels,
        x,
        last,
        resets,
        *_six(mixes),
        *_six(grads),
        dx,
        dlast,
        partial,
    )
    return dx, dlast, None if partial is None else partial.sum(0)


def relu_squared_program(*, fp16: bool = False) -> Program:
    """Return the squared relu."""
    return _program("relu_squared.cu", fp16=fp16)


def relu_squared(x: Tensor, grad: Tensor | None = None) -> Tensor:
    """Run the forward kernel on x or, given a gradient, the backward kernel on what that returned.

    Args:
        x: any shape, a multiple of 8 elements.
        grad: of the output.
    """
    result = torch.empty_like(x)
    pieces = x.numel() // _PIECE
    launch.launch(
        relu_squared_program(fp16=is_half(x)),
        "relu_squared_forward" if grad is None else "relu_squared_backward",
        (-(-pieces // _THREADS), 1, 1),
        _THREADS,
        0,
        pieces,
        x,
        *([] if grad is None else [grad]),
        result,
    )
    return result


def row_program(file: str, *, width: int = 64, fp16: bool = False) -> Program:
    """Return a file whose two kernels go through the tokens on their own.

    Args:
        file: in the folder ``kernels``.
        width: channels that belong together: N, or 64 where none do.
        fp16: elements are fp16 instead of bf16.
    """
    shared = _sums_bytes(_ROW_SUMS[file], width)
    return _program(file, width=width, fp16=fp16, SHARED_BYTES=shared)


def run_rows(
    program: Program,
    kernel: str,
    inputs: Sequence[Tensor | float],
    outputs: Sequence[Tensor],
    sums: int = 0,
    *,
    backward: bool = False,
) -> Tensor | None:
    """Run a kernel of :func:`row_program`.

    Args:
        program: from there.
        kernel: its name.
        inputs: in the kernel's order; tensors [B, T, ...] and [C], numbers first.
        outputs: what it writes, likewise [B, T, ...].
        sums: sums over the tokens that are wanted.
        backward: whether it is the backward kernel.

    Returns:
        The sums, fp32 [sums, C]; None where none are wanted.
    """
    batch, tokens, *rest = outputs[0].shape
    channels = math.prod(rest)
    macros = dict(program.defines)
    width = macros["WIDTH"]
    partial = _partial(outputs[0], sums, width) if sums else None
    launch.launch(
        program,
        kernel,
        _grid(batch * tokens, channels, width),
        _THREADS,
        macros["SHARED_BYTES"] if backward else 0,
        batch * tokens,
        channels,
        *inputs,
        *outputs,
        *([partial] if backward else []),
    )
    return None if partial is None else partial.sum(0)


def published_programs(*, fp16: bool) -> tuple[Program, ...]:
    """Return those that training of the published sizes runs, in fp16 or bf16."""
    rows = (row_program(file, fp16=fp16) for file in _ROW_SUMS)
    mixes = (shift_mix_program(count, fp16=fp16) for count in (6, 1))
    return *mixes, relu_squared_program(fp16=fp16), *rows


def programs() -> dict[str, Program]:
    """Return every program for bf16 and fp16, by a name that says what it is for."""
    found = {}
    for fp16 in (False, True):
        kind = "fp16" if fp16 else "bf16"
        found[f"shift mix {kind}, six"] = shift_mix_program(6, fp16=fp16)
        found[f"shift mix {kind}, one"] = shift_mix_program(1, fp16=fp16)
        found[f"relu squared {kind}"] = relu_squared_program(fp16=fp16)
        for file in _ROW_SUMS:
            name = Path(file).stem.replace("_", " ")
            for width in (64,) if file == "residual_value.cu" else (64, 128):
                program = row_program(file, width=width, fp16=fp16)
                found[f"{name} {kind} N={width}"] = program
    return found
