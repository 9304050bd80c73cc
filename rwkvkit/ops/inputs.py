"""What the operators share before any arithmetic: precision, shapes, the state at the start.

B batch, T tokens, H heads, N head size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from rwkvkit.errors import SetupError, UsageError

_Function = TypeVar("_Function", bound=Callable[..., object])
Impl = Literal["auto", "naive", "chunked", "cuda", "precise"]


@dataclass(frozen=True)
class Choice:
    """Which of several implementations of an operator.

    Attributes:
        impl: its name, such as ``chunked``.
        reason: in a line, for people.
    """

    impl: str
    reason: str


@dataclass(frozen=True)
class Needs:
    """Shared memory a block that the kernels of an operator need for a head size, in bytes.

    Attributes:
        chunked: on tensor cores, on an sm_80 or newer.
        precise: in fp32.
        turing: on the tensor cores of an sm_75, in fp16; None: not there.
    """

    chunked: int
    precise: int
    turing: int | None = None


def choose(
    impl: str, device: torch.device, dtype: torch.dtype, tokens: int, needs: Needs | None
) -> Choice:
    """Resolve ``auto``, and check that what is demanded can be.

    Args:
        impl: one of ``Impl``.
        device: of the inputs.
        dtype: of v, and so of the result.
        tokens: T.
        needs: of the kernels for this head size; None where there are none.

    Raises:
        UsageError: ``impl`` is unknown, or cannot run on these inputs.
    """
    if impl not in get_args(Impl):
        names = ", ".join(f"'{name}'" for name in get_args(Impl))
        raise UsageError(f"impl {impl!r} does not exist", where="wkv", hint=f"use one of {names}")
    if impl == "auto":
        if tokens == 1:
            return Choice("naive", "wkv naive: one token")
        return _automatic(device, dtype, needs)
    obstacle = None
    if impl == "cuda":
        if device.type not in ("cuda", "meta"):  # meta: to count what the kernels would hold
            obstacle = f"the tensors are on {device.type}"
        elif dtype not in (torch.bfloat16, torch.float16):
            obstacle = f"its results are bf16 or fp16, not {_name(dtype)}"
        elif needs is None:
            obstacle = "there is no kernel for this head size; 64 and 128 have one"
        elif device.type == "cuda":
            obstacle = _tensor_core_obstacle(device, dtype, needs)
    elif impl == "precise" and device.type == "cuda":
        if needs is None:
            obstacle = "there is no kernel for this head size; 64 and 128 have one"
        elif dtype == torch.float64:
            obstacle = "its kernels compute in fp32, not float64"
        else:
            obstacle = _no_room("fp32", needs.precise, device)
    if obstacle:
        raise UsageError(
            f"impl {impl!r} cannot run: {obstacle}", where="wkv", hint="'auto' takes what can"
        )
    return Choice(impl, f"wkv {impl}: as demanded")


def _automatic(device: torch.device, dtype: torch.dtype, needs: Needs | None) -> Choice:
    if device.type != "cuda":
        return Choice("chunked", f"wkv chunked: plain PyTorch, the device is {device.type}")
    if needs is None:
        return Choice(
            "chunked", "wkv chunked: plain PyTorch, there is no kernel for this head size"
        )
    if obstacle := kernel_obstacle(device):
        return Choice("chunked", f"wkv chunked: plain PyTorch, {obstacle}")
    if dtype == torch.float64:
        return Choice("chunked", "wkv chunked: plain PyTorch, kernels have no float64")
    why = " for fp32"
    if dtype != torch.float32:
        obstacle = _tensor_core_obstacle(device, dtype, needs)
        if obstacle is None:
            return Choice("cuda", "wkv cuda: tensor-core kernels for this GPU")
        why = f", {obstacle}"
    if obstacle := _no_room("fp32", needs.precise, device):
        return Choice("chunked", f"wkv chunked: plain PyTorch, {obstacle}")
    return Choice("precise", f"wkv precise: fp32 kernels{why}")


def _tensor_core_obstacle(device: torch.device, dtype: torch.dtype, needs: Needs) -> str | None:
    if _capability(device) >= 80:
        needed = needs.chunked
    elif _capability(device) == 75 and dtype == torch.float16 and needs.turing:
        needed = needs.turing
    else:
        return f"the tensor-core kernels need an sm_80 or newer for {_name(dtype)}"
    return _no_room("tensor-core", needed, device)


def _no_room(kind: str, needed: int, device: torch.device) -> str | None:
    available = _shared_bytes(device)
    if needed <= available:
        return None
    return (
        f"the {kind} kernels need {needed} bytes of shared memory a block, this GPU has {available}"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def too_old_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the GPU is older than an sm_80, and the dtype not the one it has instructions for."""
    return _capability(device) < 80 and dtype != torch.float16


def _asked(function: _Function) -> _Function:
    """Let torch.compile call a function instead of looking into it: its answer never changes.

    What ``torch.compiler.assume_constant_result`` does, which imports the compiler, a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_asked
def kernel_obstacle(device: torch.device) -> str | None:
    """Say what keeps kernels from being compiled for a GPU, or None."""
    return look_for_obstacle(device)


@cache
def look_for_obstacle(device: torch.device) -> str | None:
    """Say it, once for each device."""
    from rwkvkit.ops.cuda.compile import toolkit_versions

    if torch.version.cuda is None:
        return "torch is not built for CUDA (ROCm has no kernels here)"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 5):
        return f"the GPU is an sm_{major}{minor}, kernels begin with sm_75"
    try:
        toolkit_versions()
    except SetupError as error:
        return f"{error.what} ({error.hint})"
    return None


@_asked
def _capability(device: torch.device) -> int:
    """Its number: 90 for an sm_90. The compiler of torch 2.11 cannot compare constant tuples."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@_asked
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have."""
    usual = 99 * 1024 if _capability(device) >= 80 else 64 * 1024
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", usual)


def check(inputs: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Compare shapes with those expected, by name.

    Raises:
        UsageError: a shape differs, or there is no token.
    """
    for name, shape in expected.items():
        if name in inputs and tuple(inputs[name].shape) != shape:
            raise UsageError(
                f"{name} has shape {tuple(inputs[name].shape)}, expected {shape}",
                where="wkv",
                hint="r, k, v are [B, T, H, N], a state is [B, H, N, N], resets are [B, T]",
            )
        if 0 in shape:
            raise UsageError(f"{name} is empty, shape {shape}", where="wkv")


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast, also for tensors without data, which it does not know."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The precision of the recurrence: float32, or float64 where an input is."""
    doubles = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if doubles else torch.float32


def first_state(
    state: Tensor | None, origin: Tensor | None, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """The state [B, H, N, N] before the first token: ``state``, else the origin, else zero.

    Args:
        state: [B, H, N, N] or None.
        origin: [H, N, N] or None.
        like: [B, T, H, N], for the sizes and the device.
        dtype: of the result.
    """
    batch, _, heads, size = like.shape
    if state is not None:
        return state.to(dtype)
    if origin is not None:
        return origin.to(dtype).expand(batch, heads, size, size)
    return torch.zeros(batch, heads, size, size, dtype=dtype, device=like.device)
