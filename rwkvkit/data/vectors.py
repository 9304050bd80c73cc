"""Sixty-four bytes of JSON at a time: vector instructions of LLVM, which fit any processor.

Whoever calls these sees to it that the memory at an address, of ``WIDTH`` bytes, is there.
"""

from typing import Any

from llvmlite import ir
from numba import types

from rwkvkit.tokenizer.machine import intrinsic

WIDTH = 64
"""Bytes that are looked at together. Most strings have an escape sooner; more would be in vain."""

_BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_MASK = ir.IntType(WIDTH)


def _all(byte: int) -> Any:
    return ir.Constant(_BYTES, [byte] * WIDTH)


def _load(builder: Any, address: Any, before: int = 0) -> Any:
    start = builder.sub(address, ir.Constant(ir.IntType(64), before))
    return builder.load(builder.inttoptr(start, _BYTES.as_pointer()), align=1)


@intrinsic
def odd_bytes(_, address, high_is_plain):  # type: ignore[no-untyped-def]
    """Return a bit for each of ``WIDTH`` bytes, the first lowest: whether it is odd in a string.

    Odd are a quote, a backslash, control characters, and, unless told so, what is not ASCII.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        there = _load(builder, arguments[0])
        odd = builder.icmp_unsigned("==", there, _all(ord('"')))
        odd = builder.or_(odd, builder.icmp_unsigned("==", there, _all(ord("\\"))))
        odd = builder.or_(odd, builder.icmp_unsigned("<", there, _all(0x20)))
        high = builder.bitcast(builder.icmp_signed("<", there, _all(0)), _MASK)
        plain = builder.trunc(arguments[1], ir.IntType(1))
        high = builder.select(plain, ir.Constant(_MASK, 0), high)
        return builder.or_(builder.bitcast(odd, _MASK), high)

    return types.uint64(types.uint64, types.boolean), generate


@intrinsic
def lowest(_, bits):  # type: ignore[no-untyped-def]
    """Return the number of the lowest bit that is set in an uint64; 64 if none is."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def copy(_, source, target):  # type: ignore[no-untyped-def]
    """Copy ``WIDTH`` bytes from one address to another."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        there = _load(builder, arguments[0])
        builder.store(there, builder.inttoptr(arguments[1], _BYTES.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def is_ascii(_, address):  # type: ignore[no-untyped-def]
    """Return whether ``WIDTH`` bytes and the three before them are all ASCII."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        there = builder.or_(_load(builder, arguments[0]), _load(builder, arguments[0], 3))
        high = builder.bitcast(builder.icmp_signed("<", there, _all(0)), _MASK)
        return builder.icmp_unsigned("==", high, ir.Constant(_MASK, 0))

    return types.boolean(types.uint64), generate


@intrinsic
def breaks_utf8(_, address):  # type: ignore[no-untyped-def]
    """Return whether any of ``WIDTH`` bytes cannot stand behind the three before it in UTF-8.

    The ranges are those of table 3-7 of the Unicode standard: nothing overlong, no surrogate,
    nothing above U+10FFFF. That a sequence is complete shows at the byte behind it.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        byte, before, second, third = (_load(builder, arguments[0], back) for back in range(4))

        def is_at_least(bytes_, least):  # type: ignore[no-untyped-def]
            return builder.icmp_unsigned(">=", bytes_, _all(least))

        def either(*conditions):  # type: ignore[no-untyped-def]
            first, *others = conditions
            for other in others:
                first = builder.or_(first, other)
            return first

        def pair(lead, compared, bound):  # type: ignore[no-untyped-def]
            is_lead = builder.icmp_unsigned("==", before, _all(lead))
            return builder.and_(is_lead, builder.icmp_unsigned(compared, byte, _all(bound)))

        belongs = either(
            is_at_least(before, 0xC0), is_at_least(second, 0xE0), is_at_least(third, 0xF0)
        )
        continues = builder.icmp_signed("<", byte, _all(0xC0 - 0x100))
        wrong = either(
            builder.xor(belongs, continues),
            builder.icmp_unsigned("==", builder.and_(byte, _all(0xFE)), _all(0xC0)),
            is_at_least(byte, 0xF5),
            pair(0xE0, "<", 0xA0),
            pair(0xED, ">", 0x9F),
            pair(0xF0, "<", 0x90),
            pair(0xF4, ">", 0x8F),
        )
        found = builder.bitcast(wrong, _MASK)
        return builder.icmp_unsigned("!=", found, ir.Constant(_MASK, 0))

    return types.boolean(types.uint64), generate
