"""Start the WKV7 kernels: allocate what they write, and choose their macros.

B batch, T tokens, H heads, N head size, C chunks of 16 tokens.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda.compile import Program

CHUNK = 16
_ROW_PADDING = 8  # elements behind each row of a tile, against bank conflicts


@dataclass(frozen=True)
class Shape:
    """What decides which chunked program is compiled.

    Attributes:
        size: N, 64 or 128.
        fp16: elements are fp16 instead of bf16.
        resets: documents start inside the sequence.
        checkpoint_chunks: chunks between two checkpoints of the state: 1 keeps it in the elements'
            type and recomputes nothing in the backward pass, 4 takes half the memory.
        buffers: chunks of inputs that the backward kernel holds: 2 loads one while it uses the
            other, 1 takes less shared memory.
    """

    size: int
    fp16: bool = False
    resets: bool = False
    checkpoint_chunks: int = 1
    buffers: int = 2

    @property
    def warps(self) -> int:
        """Warps a block, one for 16 value rows of the state."""
        return self.size // 16

    def checkpoint_dtype(self) -> torch.dtype:
        """The type in which the state is kept."""
        if self.checkpoint_chunks > 1:
            return torch.float32
        return torch.float16 if self.fp16 else torch.bfloat16

    def checkpoints(self, tokens: int) -> int:
        """How many states are kept for T tokens."""
        return -(-tokens // (CHUNK * self.checkpoint_chunks))

    def _lean(self) -> bool:
        return self.checkpoint_chunks == 1 and not self.fp16

    def _tile(self) -> int:
        return CHUNK * (self.size + _ROW_PADDING) * 2

    def forward_shared_bytes(self) -> int:
        """Shared memory of a forward block; the kernel asserts the same number."""
        tiles = 2 * (5 * self._tile() + 2 * self.size * 4)
        return tiles + 4 * CHUNK * 24 * 2 + CHUNK * 24 * 4

    def backward_shared_bytes(self) -> int:
        """Shared memory of a backward block; the kernel asserts the same number."""
        tiles = (7 * self.buffers + 4) * self._tile()
        growth = (CHUNK + 1) * (self.size + _ROW_PADDING) * 4
        states = self.checkpoint_chunks + 1
        columns = 2 * self.size * 24 * 2
        scales = 2 * self.size * 4
        return tiles + growth + states * self.size**2 * 2 + columns + 4 * CHUNK * 24 * 2 + scales

    def _program(self, file: str, shared_bytes: int, min_blocks: int, **more: int) -> Program:
        """Return the kernel file with the macros of this shape."""
        defines = {
            "HEAD_SIZE": self.size,
            "CHECKPOINT_CHUNKS": self.checkpoint_chunks,
            "SHARED_BYTES": shared_bytes,
            "MIN_BLOCKS": min_blocks,
            "RESETS": int(self.resets),
            **more,
        }
        if self.fp16:
            defines["ELEMENT_FP16"] = 1
        return Program(file, tuple(defines.items()))

    def forward_program(self) -> Program:
        """The forward kernel; as many blocks a multiprocessor as its registers allow."""
        blocks = 1 if self.size == 128 else 4 if self._lean() else 2
        return self._program("wkv7_forward.cu", self.forward_shared_bytes(), blocks)

    def backward_program(self) -> Program:
        """The backward kernel, likewise."""
        if self.size == 128:
            blocks = 1
        elif not self._lean():
            blocks = 2
        else:
            blocks = 3 if self.buffers == 2 else 4
        return self._program(
            "wkv7_backward.cu",
            self.backward_shared_bytes(),
            blocks,
            BUFFERS=self.buffers,
        )


def usual_shape(size: int, *, fp16: bool, resets: bool) -> Shape:
    """Return the shape that the operator takes.

    One chunk of inputs at a time where there is no room for two: at N = 128, and in fp16, which an
    sm_75 with its 64 KiB can run.
    """
    return Shape(size, fp16, resets, buffers=1 if fp16 or size == 128 else 2)


def forward(
    shape: Shape,
    vectors: tuple[Tensor, ...],
    state: Tensor | None,
    origin: Tensor | None,
    resets: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the chunked forward kernel.

    Args:
        shape: of the program.
        vectors: r, log_w, k, v, a, b, contiguous [B, T, H, N] in bf16 or fp16.
        state: fp32 [B, H, N, N] before the first token; None: zero.
        origin: fp32 [H, N, N], the state of a document's start; None: zero.
        resets: bool [B, T], True where a document starts; None: nowhere.
        keep: write what the backward pass needs.

    Returns:
        y [B, T, H, N], the state after the last token fp32 [B, H, N, N], and the checkpoints
        [B, H, ceil(C / checkpoint_chunks), N, N], empty unless ``keep``.
    """
    batch, tokens, heads, size = vectors[0].shape
    y = torch.empty_like(vectors[0])
    final = y.new_empty(batch, heads, size, size, dtype=torch.float32)
    count = shape.checkpoints(tokens) if keep else 0
    checkpoints = y.new_empty(batch, heads, count, size, size, dtype=shape.checkpoint_dtype())
    launch.launch(
        shape.forward_program(),
        "wkv7_forward",
        (heads, batch, 1),
        32 * shape.warps,
        shape.forward_shared_bytes(),
        tokens,
        heads,
        *vectors,
        state,
        origin,
        resets,
        y,
        final,
        checkpoints if keep else None,
    )
    return y, final, checkpoints


def backward(
    shape: Shape,
    vectors: tuple[Tensor, ...],
    dy: Tensor,
    origin: Tensor | None,
    resets: Tensor | None,
    checkpoints: Tensor,
    dfinal: Tensor | None,
    *,
    want_state: bool,
    want_origin: bool,
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]:
    """Run the chunked backward kernel.

    Args:
        shape: as in :func:`forward`; so are vectors, origin and resets.
        vectors: see there.
        dy: the gradient of y [B, T, H, N], in the vectors' type.
        origin: see there.
        resets: see there.
        checkpoints: from there.
        dfinal: the gradient of the last state, fp32 [B, H, N, N]; None: zero.
        want_state: compute the gradient of the first state.
        want_origin: compute the gradient of the origin.

    Returns:
        The gradients of the vectors, in their order and type; that of the state before the first
        token, fp32 [B, H, N, N]; that of the origin at each document's start, fp32 [H, N, N].
    """
    batch, tokens, heads, size = dy.shape
    gradients = tuple(torch.empty_like(x) for x in vectors)
    square = (batch, heads, size, size)
    dstate = dy.new_empty(square, dtype=torch.float32) if want_state else None
    dorigin = dy.new_zeros(square, dtype=torch.float32) if want_origin else None
    launch.launch(
        shape.backward_program(),
        "wkv7_backward",
        (heads, batch, 1),
        32 * shape.warps,
        shape.backward_shared_bytes(),
        tokens,
        heads,
        *vectors,
        dy,
        origin,
        resets,
        checkpoints,
        dfinal,
        *gradients,
        dstate,
        dorigin,
    )
    return gradients, dstate, None if dorigin is None else dorigin.sum(0)


def precise_program(size: int) -> Program:
    """Return the fp32 kernels for head size N."""
    return Program(
        "wkv7_precise.cu", (("HEAD_SIZE", size), ("SHARED_BYTES", _precise_shared_bytes(size)))
    )


def precise_forward(
    vectors: tuple[Tensor, ...],
    state: Tensor | None,
    origin: Tensor | None,
    resets: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the fp32 forward kernel; as :func:`forward`, with everything in fp32."""
    batch, tokens, heads, size = vectors[0].shape
    y = torch.empty_like(vectors[0])
    final = y.new_empty(batch, heads, size, size)
    checkpoints = y.new_empty(batch, heads, -(-tokens // CHUNK) if keep else 0, size, size)
    launch.launch(
        precise_program(size),
        "wkv7_precise_forward",
        (heads, batch, 1),
        size * (size // 32),
        _precise_shared_bytes(size),
        tokens,
        heads,
        *vectors,
        state,
        origin,
        resets,
        y,
        final,
        checkpoints if keep else None,
    )
    return y, final, checkpoints


def precise_backward(
    vectors: tuple[Tensor, ...],
    dy: Tensor,
    origin: Tensor | None,
    resets: Tensor | None,
    checkpoints: Tensor,
    dfinal: Tensor | None,
    *,
    want_state: bool,
    want_origin: bool,
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]:
    """Run the fp32 backward kernel; as :func:`backward`, with everything in fp32."""
    batch, tokens, heads, size = dy.shape
    gradients = tuple(torch.empty_like(x) for x in vectors)
    square = (batch, heads, size, size)
    dstate = dy.new_empty(square) if want_state else None
    dorigin = dy.new_zeros(square) if want_origin else None
    launch.launch(
        precise_program(size),
        "wkv7_precise_backward",
        (heads, batch, 1),
        size * (size // 32),
        _precise_shared_bytes(size),
        tokens,
        heads,
        *vectors,
        dy,
        origin,
        resets,
        checkpoints,
        dfinal,
        *gradients,
        dstate,
        dorigin,
        dy.new_empty(batch, heads, CHUNK * size // 256, size, size),  # states computed again
    )
    return gradients, dstate, None if dorigin is None else dorigin.sum(0)


def _precise_shared_bytes(size: int) -> int:
    return (8 * CHUNK * size + 2 * size) * 4 + CHUNK


def programs() -> dict[str, Program]:
    """Return every program that the operator can ask for, by a name that says what it is for."""
    found = {}
    for size, fp16 in itertools.product((64, 128), (False, True)):
        kind = f"wkv7 {'fp16' if fp16 else 'bf16'} N={size}"
        for resets in (False, True):
            shape = usual_shape(size, fp16=fp16, resets=resets)
            documents = ", documents" if resets else ""
            found[f"{kind} forward{documents}"] = shape.forward_program()
            found[f"{kind} backward{documents}"] = shape.backward_program()
        found[f"wkv7 fp32 N={size}"] = precise_program(size)
    return found
