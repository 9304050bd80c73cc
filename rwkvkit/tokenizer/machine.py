"""What compiled loops need and numba does not offer: memory by address, choices, files.

An address is an uint64. Nothing is checked: whoever calls these keeps the memory alive, and stays
inside it. Values of several bytes are those of a little-endian machine.
"""

import mmap
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types

from rwkvkit.tokenizer.jit import compiled

intrinsic: Any = extending.intrinsic  # it passes the first argument itself

_PROTECTION, _SHARED = mmap.PROT_READ, mmap.MAP_SHARED
_POPULATE_READ = 22  # of madvise, since Linux 5.14

_BYTE = ir.IntType(8)
_BIT = ir.IntType(1)


def _load(bits: int) -> Any:
    @intrinsic
    def load(_, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(types.uint64), generate

    return load


load8, load16, load64 = _load(8), _load(16), _load(64)
"""Return the unsigned number of so many bits at an address, which need not be a multiple of it."""


def _store(bits: int) -> Any:
    @intrinsic
    def store(_, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            builder.store(builder.trunc(arguments[1], ir.IntType(bits)), pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    return store


store8, store16 = _store(8), _store(16)
"""Write the low bits of an uint64 to an address."""


@intrinsic
def choose(_, condition, yes, no):  # type: ignore[no-untyped-def]
    """Return ``yes`` or ``no`` (uint64) without a branch.

    A conditional expression becomes one where LLVM thinks that it can be predicted; before numba
    0.62, so does this.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        chosen = builder.select(builder.trunc(arguments[0], _BIT), *arguments[1:])
        chosen.set_metadata("unpredictable", builder.module.add_metadata([]))
        return chosen

    return types.uint64(types.boolean, types.uint64, types.uint64), generate


@intrinsic
def move(_, target, source, size):  # type: ignore[no-untyped-def]
    """Copy ``size`` bytes from one address to another; they may overlap."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer, size = _BYTE.as_pointer(), ir.IntType(64)
        memmove = builder.module.declare_intrinsic("llvm.memmove", [pointer, pointer, size])
        to, start = (builder.inttoptr(address, pointer) for address in arguments[:2])
        builder.call(memmove, [to, start, arguments[2], ir.Constant(_BIT, 0)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), generate


_pread: Any = types.ExternalFunction(
    "pread", types.int64(types.int32, types.uint64, types.uint64, types.int64)
)


@compiled
def read_at(descriptor, address, size, offset):  # type: ignore[no-untyped-def]
    """Read ``size`` bytes of a file, from ``offset``, to an address; return whether it could."""
    while size > 0:
        count = _pread(descriptor, address, size, offset)
        if count <= 0:
            return False
        address += np.uint64(count)
        size -= np.uint64(count)
        offset += count
    return True


_mmap: Any = types.ExternalFunction(
    "mmap",
    types.int64(types.uint64, types.uint64, types.int32, types.int32, types.int32, types.int64),
)
_munmap: Any = types.ExternalFunction("munmap", types.int32(types.uint64, types.uint64))
_madvise: Any = types.ExternalFunction(
    "madvise", types.int32(types.uint64, types.uint64, types.int32)
)


@compiled
def map_at(descriptor, size, offset):  # type: ignore[no-untyped-def]
    """Map ``size`` bytes of a file, from ``offset``, and read them; return the address or 0.

    It is 0 where the file is shorter or cannot be read, too, which would end the process on the
    first access; and where the system cannot tell. ``offset`` is a multiple of the size of a page.
    """
    address = _mmap(np.uint64(0), size, _PROTECTION, _SHARED, descriptor, offset)
    if address == -1:
        return np.uint64(0)
    if _madvise(np.uint64(address), size, _POPULATE_READ) != 0:
        unmap(np.uint64(address), size)
        return np.uint64(0)
    return np.uint64(address)


@compiled
def unmap(address, size):  # type: ignore[no-untyped-def]
    """Undo ``map_at``."""
    _munmap(address, size)
