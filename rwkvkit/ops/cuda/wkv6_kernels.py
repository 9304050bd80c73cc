"""Start the WKV6 kernels: allocate what they write, and choose their macros.

WKV5 is told from WKV6 by log_w, [H, N] in fp32 instead of [B, T, H, N].

B batch, T tokens, H heads, N head size, C chunks of 16 tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda.compile import Program

CHUNK = 16
_PANEL = 64  # channels that a block owns
_THREADS = 128
_WARPS = 4

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Of r, k, v, log_w, u and the first state."""


@dataclass(frozen=True)
class Shape:
    """What decides which chunked program is compiled.

    Attributes:
        size: N, 64 or 128.
        fp16: the tensors are fp16 instead of bf16.
        resets: documents start inside the sequence.
        spacing: chunks between two checkpoints of the state, 1, 2 or 4; 0: as many as fit into
            the shared memory of every architecture.
        split: the backward pass divides a head among several blocks; always so at N = 128.
    """

    size: int
    fp16: bool = False
    resets: bool = False
    spacing: int = 0
    split: bool = False

    @property
    def chunks(self) -> int:
        """Chunks between two checkpoints."""
        return self.spacing or (4 if self.size == 64 else 2)

    @property
    def parts(self) -> int:
        """Blocks of the backward pass a head."""
        return 2 * self.size // _PANEL if self.split or self.size != 64 else 1

    def checkpoints(self, tokens: int) -> int:
        """How many states are kept for T tokens."""
        return -(-tokens // (CHUNK * self.chunks))

    def forward_shared_bytes(self) -> int:
        """Shared memory of a forward block; the kernel asserts the same number."""
        return 2 * (_key_tiles(self.size) + _tile(_PANEL))

    def backward_shared_bytes(self) -> int:
        """Shared memory of a backward block; the kernel asserts the same number."""
        chunk = _key_tiles(_PANEL) + 2 * _tile(self.size) + self.size // 4 * _THREADS * 4
        exchange = 3 * CHUNK * 16 * 4 + (CHUNK + 16) * 4
        return self.chunks * chunk + _WARPS * exchange

    def forward_program(self) -> Program:
        """The forward kernel; as many blocks a multiprocessor as its registers allow."""
        blocks = 4 if self.size == 64 else 2
        bytes_ = self.forward_shared_bytes()
        return self._program("wkv6_forward.cu", SHARED_BYTES=bytes_, MIN_BLOCKS=blocks)

    def backward_program(self) -> Program:
        """The backward kernel."""
        split = int(self.parts > 1)
        bytes_ = self.backward_shared_bytes()
        return self._program(
            "wkv6_backward.cu", SHARED_BYTES=bytes_, SPLIT_SIDES=split, MIN_BLOCKS=2
        )

    def _program(self, file: str, **more: int) -> Program:
        defines = {
            "HEAD_SIZE": self.size,
            "RESETS": int(self.resets),
            "CHECKPOINT_CHUNKS": self.chunks,
            **more,
        }
        if self.fp16:
            defines["INPUT_FP16"] = 1
        return Program(file, tuple(defines.items()))


def _tile(width: int) -> int:
    """Bytes of a tile; its rows are padded against bank conflicts."""
    return CHUNK * (width + 8) * 2


def _key_tiles(keys: int) -> int:
    powers, keep, diagonal = keys // 2 * 16, keys * 4, CHUNK * (keys // 16) * 4
    return 3 * _tile(keys) + powers + keep + diagonal


def forward(
    shape: Shape,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the chunked forward kernel; every tensor is contiguous.

    Args:
        shape: of the program.
        r: [B, T, H, N] in bf16 or fp16; k and v likewise.
        k: see r.
        v: see r.
        log_w: logarithm of the decay, like r; for WKV5 fp32 [H, N].
        u: fp32 [H, N].
        state: fp32 [B, H, N, N] as [key, value] before the first token; None: zero.
        resets: bool [B, T], True where a document starts from a zero state; None: nowhere.
        keep: write what the backward pass needs.

    Returns:
        y like r, the state after the last token fp32 [B, H, N, N], and the checkpoints as
        [value, key], fp32 [B, H, ceil(C / shape.chunks), N, N], none unless ``keep``.
    """
    batch, tokens, heads, size = r.shape
    y = torch.empty_like(r)
    final = _square(r, batch, heads, size, size)
    checkpoints = _square(r, batch, heads, shape.checkpoints(tokens) if keep else 0, size, size)
    launch.launch(
        shape.forward_program(),
        "wkv6_forward",
        (heads, batch, size // _PANEL),
        _THREADS,
        shape.forward_shared_bytes(),
        tokens,
        heads,
        r,
        k,
        v,
        *_decay(log_w),
        u,
        state,
        resets,
        y,
        final,
        checkpoints if keep else None,
    )
    return y, final, checkpoints


def backward(
    shape: Shape,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    resets: Tensor | None,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
    *,
    want_state: bool,
) -> Gradients:
    """Run the chunked backward kernel.

    Args:
        shape: as in :func:`forward`; so are r, k, v, log_w, u and resets.
        r: see there.
        k: see there.
        v: see there.
        log_w: see there.
        u: see there.
        resets: see there.
        checkpoints: from there.
        dy: the gradient of y, like r.
        dfinal: the gradient of the last state, fp32 [B, H, N, N]; None: zero.
        want_state: compute the gradient of the first state.

    Returns:
        The gradients, each in its tensor's type and shape; None for a state not wanted.
    """
    batch, tokens, heads, size = r.shape
    dr, dk, dv = torch.empty_like(r), torch.empty_like(k), torch.empty_like(v)
    dlog_w, dlog_w_rows = _decay_gradient(log_w, batch)
    du_rows = _square(r, batch, heads, size)
    dstate = _square(r, batch, heads, size, size) if want_state else None
    launch.launch(
        shape.backward_program(),
        "wkv6_backward",
        (heads, batch, shape.parts),
        _THREADS,
        shape.backward_shared_bytes(),
        tokens,
        heads,
        r,
        k,
        v,
        *_decay(log_w),
        u,
        resets,
        checkpoints,
        dy,
        dfinal,
        dr,
        dk,
        dv,
        dlog_w,
        dlog_w_rows,
        du_rows,
        dstate,
    )
    return dr, dk, dv, _whole(dlog_w, dlog_w_rows), du_rows.sum(0), dstate


def precise_forward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrent forward kernel: :func:`forward` with every tensor in fp32.

    The checkpoints are [B, H, C, N, N] as [key, value].
    """
    batch, tokens, heads, size = r.shape
    y = torch.empty_like(r)
    final = _square(r, batch, heads, size, size)
    checkpoints = _square(r, batch, heads, -(-tokens // CHUNK) if keep else 0, size, size)
    _launch_precise(
        "forward",
        *(r, k, v, *_decay(log_w), u, state, resets, y, final, checkpoints if keep else None),
    )
    return y, final, checkpoints


def precise_backward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    resets: Tensor | None,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
    *,
    want_state: bool,
) -> Gradients:
    """Run the recurrent backward kernels: :func:`backward` with every tensor in fp32."""
    batch, _, heads, size = r.shape
    dr, dk, dv = torch.empty_like(r), torch.empty_like(k), torch.empty_like(v)
    dlog_w, dlog_w_rows = _decay_gradient(log_w, batch)
    du_rows = _square(r, batch, heads, size)
    dstate = _square(r, batch, heads, size, size) if want_state else None
    inputs = (r, k, v, *_decay(log_w), u, resets)
    _launch_precise("backward_values", *inputs, dy, dfinal, dv, dstate)
    scratch = _square(r, batch, heads, CHUNK, size, size)
    outputs = (dr, dk, dlog_w, dlog_w_rows, du_rows)
    _launch_precise("backward_keys", *inputs, checkpoints, dy, dfinal, scratch, *outputs)
    return dr, dk, dv, _whole(dlog_w, dlog_w_rows), du_rows.sum(0), dstate


def precise_program(size: int) -> Program:
    """The recurrent kernels."""
    defines = {"HEAD_SIZE": size, "SHARED_BYTES": precise_shared_bytes(size)}
    return Program("wkv6_precise.cu", tuple(defines.items()))


def precise_shared_bytes(size: int) -> int:
    """Shared memory of a block of them."""
    return (5 * CHUNK + 1) * size * 4 + CHUNK * 4


def _launch_precise(kernel: str, r: Tensor, *others: Tensor | None) -> None:
    batch, tokens, heads, size = r.shape
    launch.launch(
        precise_program(size),
        f"wkv6_precise_{kernel}",
        (heads, batch, 1),
        size * size // 32,
        precise_shared_bytes(size),
        tokens,
        heads,
        r,
        *others,
    )


def _square(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _decay(log_w: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The decay as the kernels take it: a token's and channel's, or a channel's."""
    return (log_w, None) if log_w.dim() == 4 else (None, log_w)


def _decay_gradient(log_w: Tensor, batch: int) -> tuple[Tensor | None, Tensor | None]:
    """Its gradient likewise; a channel's comes in parts, one a batch row."""
    if log_w.dim() == 4:
        return torch.empty_like(log_w), None
    return None, _square(log_w, batch, *log_w.shape)


def _whole(gradient: Tensor | None, rows: Tensor | None) -> Tensor:
    """The gradient, or the sum of its parts, always in the same order."""
    if gradient is not None:
        return gradient
    assert rows is not None
    return rows.sum(0)


def programs() -> dict[str, Program]:
    """Return the programs that the operator asks for, by a name that says what each is for.

    But those for fp16 with documents: from those for bf16 they differ in conversions only.
    """
    found = {}
    for size, fp16, resets in (
        (64, False, False),
        (64, False, True),
        (64, True, False),
        (128, False, False),
        (128, False, True),
    ):
        kind = f"wkv6 {'fp16' if fp16 else 'bf16'} N={size}"
        shape = Shape(size, fp16, resets)
        documents = ", documents" if resets else ""
        found[f"{kind} forward{documents}"] = shape.forward_program()
        found[f"{kind} backward{documents}"] = shape.backward_program()
    return found | {f"wkv6 fp32 N={size}": precise_program(size) for size in (64, 128)}
