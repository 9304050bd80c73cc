"""Start compiled kernels on torch's current stream."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkvkit.errors import SetupError, UsageError
from rwkvkit.ops.cuda.compile import Program, compile_program

Argument = Tensor | int | float | None

_SHARED_WITHOUT_ASKING = 48 * 1024  # bytes a block; beyond, a kernel must be allowed more


def launch(
    program: Program,
    kernel: str,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    *arguments: Argument,
    alignment: int = 16,
) -> None:
    """Start a kernel on the current stream of the first tensor's device; does not wait for it.

    Args:
        program: what holds the kernel.
        kernel: its name.
        grid: blocks along x, y and z.
        threads: a block.
        shared_bytes: dynamic shared memory a block.
        arguments: tensors and None for pointers, whole numbers for ``int``, others for ``float``.
        alignment: of the floating tensors' first elements, in bytes; kernels read 16 at a time.

    Raises:
        UsageError: a tensor does not begin at a multiple of the alignment; the GPU would stop, and
            the process could not use it any more.
        SetupError: it cannot be compiled, or asks for more shared memory than the GPU has.
    """
    for x in arguments:
        if isinstance(x, Tensor) and x.is_floating_point() and x.data_ptr() % alignment:
            raise UsageError(
                f"a tensor of shape {tuple(x.shape)} does not begin at a multiple of"
                f" {alignment} bytes, which the kernel needs",
                where=kernel,
                hint="it is a part of a larger tensor: pass a clone of it",
            )

    import numpy as np
    from cuda.core import Device, LaunchConfig, Stream
    from cuda.core import launch as start

    device = next(x.device for x in arguments if isinstance(x, Tensor))
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        # A thread that autograd has just begun may have no context yet.
        Device(index).set_current()
        loaded = _load(program, kernel, index, shared_bytes)
        stream = Stream.from_handle(torch.cuda.current_stream(index).cuda_stream)
        config = LaunchConfig(grid=grid, block=threads, shmem_size=shared_bytes)
        values: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                values.append(argument.data_ptr())
            elif argument is None:
                values.append(0)
            elif isinstance(argument, int):
                values.append(np.int32(argument))
            else:
                values.append(np.float32(argument))
        start(stream, config, loaded, *values)


@cache
def _load(program: Program, kernel: str, index: int, shared_bytes: int) -> Any:
    """Load a kernel onto the GPU ``index`` and allow it the shared memory it asks for."""
    from cuda.bindings import driver
    from cuda.core import Device

    available = Device(index).properties.max_shared_memory_per_block_optin
    if shared_bytes > available:
        raise SetupError(
            f"{kernel} needs {shared_bytes} bytes of shared memory a block, this GPU has"
            f" {available}",
            where=program.file,
            hint="set train.wkv to chunked or precise",
        )
    loaded = _code(program, architecture(index)).get_kernel(kernel)
    if shared_bytes > _SHARED_WITHOUT_ASKING:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, loaded.handle, index)
        if int(status) != 0:
            raise SetupError(f"the driver refuses {shared_bytes} bytes: {status}", where=kernel)
    return loaded


@cache
def _code(program: Program, arch: str) -> Any:
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(compile_program(program, arch).cubin, name=program.file)


def architecture(index: int) -> str:
    """Return the name that the compiler gives a GPU, such as ``sm_90a``."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
