"""Greedy longest-match encoding of whole buffers: a packed double array and the loops over it.

A trie node owns a *base*; its child for byte ``c`` is the slot ``base + c``. Bases are unique, so
a slot belongs to the node that asks for it exactly when the byte stored in it is ``c``. One int64
holds a slot::

    bits 0-8    the byte that leads here, or 256 in an empty slot, which no byte equals
    bits 9-31   the base of this node's own children, 0 for none (slots 0-255 are always empty)
    bits 32-47  the id of the token that ends here, 0 for none

The first two bytes of a token are looked up at once, in a table of 65,536 roots: bits 0-31 the
base after both bytes, bits 32-47 the id of the longest token within them, bits 48 and up its
length.

Encoding is a chain of dependent loads, so one walk leaves the processor idle most of the time. The
fast loop therefore walks several lanes at once, without branches. Lanes start at *seams*: where a
byte pair lies inside no token, every encoding has a token boundary, so text cut there encodes to
the same ids as the whole.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvkit.tokenizer.jit import compiled

_EMPTY = 256
_FIRST_BASE = 512  # below lie the slots of base 0, which must stay empty, and of no node
_MAX_MISSES = 40  # failed placements after which the search starts further on
_MIN_LANE = 256  # bytes; below, a lane would end before it started


class Tables(NamedTuple):
    """What the loops read; the layout of ``slots`` and ``roots`` is in the module's docstring."""

    slots: NDArray[np.int64]
    roots: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Bytes in each token, by id; 1 for id 0, which the byte 0xFF encodes to."""
    inside: NDArray[np.bool_]
    """Whether a byte pair (first + 256 * second) lies inside some token."""


def build(tokens: dict[int, bytes]) -> Tables:
    """Build the tables for a vocabulary that holds every single byte.

    0xFF becomes id 0 whatever its id, so that it can end documents: it is in no valid UTF-8.

    Args:
        tokens: the bytes of each id, ids in 1..65535, 0xFF in no token but its own.
    """
    ids = np.fromiter(tokens, np.int64, len(tokens))
    sizes = np.fromiter(map(len, tokens.values()), np.int64, len(tokens))
    text = np.frombuffer(b"".join(tokens.values()), np.uint8).astype(np.int64)
    parents, chars, values = _nodes(ids, sizes, text)
    bases = _place(parents, chars)

    children = np.flatnonzero(parents)  # below the first level, which the roots hold
    slots = np.full(int(bases.max()) + 2 * _EMPTY, _EMPTY, np.int64)
    slots[bases[parents[children]] + chars[children]] = (
        chars[children] | bases[children] << 9 | values[children] << 32
    )

    lengths = np.zeros(65536, np.int64)
    lengths[ids] = sizes
    lengths[0] = 1
    last = np.zeros(len(text), bool)
    last[np.cumsum(sizes) - 1] = True
    starts = np.flatnonzero(~last)
    inside = np.zeros(65536, bool)
    inside[text[starts] | text[starts + 1] << 8] = True
    return Tables(slots, _roots(parents, chars, values, bases), lengths, inside)


def _nodes(
    ids: NDArray[np.int64], sizes: NDArray[np.int64], text: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return parent, byte and token id of every trie node, the root first, level by level.

    The children of a node stand together, in the order of their bytes.
    """
    starts = np.cumsum(sizes) - sizes
    levels = [(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))]
    reached = np.zeros(len(ids), np.int64)
    n_nodes = 1
    longer = np.arange(len(ids))
    for depth in range(int(sizes.max())):
        longer = longer[sizes[longer] > depth]
        keys, which = np.unique(
            reached[longer] * 256 + text[starts[longer] + depth], return_inverse=True
        )
        reached[longer] = n_nodes + which
        n_nodes += len(keys)
        values = np.zeros(len(keys), np.int64)
        ending = sizes[longer] == depth + 1
        values[which[ending]] = ids[longer[ending]]
        levels.append((keys >> 8, keys & 255, values))
    parents, chars, values = (np.concatenate(column) for column in zip(*levels, strict=True))
    return parents, chars, values


def _place(parents: NDArray[np.int64], chars: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose a base for every node that has children, below the root.

    Nodes with several children go first, each to the first place where all fit; nodes with one
    child then fill the holes.
    """
    n_nodes = len(parents)
    counts = np.bincount(parents[1:], minlength=n_nodes)
    firsts = np.searchsorted(parents[1:], np.arange(n_nodes)) + 1
    flat = chars.astype(np.uint8).tobytes()
    used = bytearray(b"\1" * _FIRST_BASE + bytes(8 * n_nodes))
    taken = bytearray(len(used))
    bases = np.zeros(n_nodes, np.int64)

    def search(byte: int, others: bytes, start: int) -> tuple[int, int]:
        misses = 0
        slot = used.find(0, start)
        while taken[slot - byte] or any(used[slot - byte + other] for other in others):
            slot = used.find(0, slot + 1)
            misses += 1
        return slot - byte, misses

    for several in (True, False):
        start = _FIRST_BASE
        patience = _MAX_MISSES if several else _MAX_MISSES // 10
        for node in np.flatnonzero(counts > 1 if several else counts == 1).tolist():
            if node == 0:
                continue
            own = flat[firsts[node] : firsts[node] + counts[node]]
            base, misses = search(own[0], own[1:], start)
            if misses > patience:
                start = used.find(0, start + 1 + (misses // 4 if several else 0))
            bases[node] = base
            taken[base] = 1
            for byte in own:
                used[base + byte] = 1
    return bases


def _roots(
    parents: NDArray[np.int64],
    chars: NDArray[np.int64],
    values: NDArray[np.int64],
    bases: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the table of the first two bytes, ``first + 256 * second``."""
    singles = np.zeros(256, np.int64)
    first_level = np.flatnonzero(parents[1:] == 0) + 1
    singles[chars[first_level]] = values[first_level]
    singles[0xFF] = 0
    roots = np.tile(singles << 32 | 1 << 48, 256)
    second_level = np.flatnonzero(np.isin(parents, first_level))
    pairs = chars[parents[second_level]] | chars[second_level] << 8
    whole = values[second_level] != 0
    roots[pairs[whole]] = values[second_level[whole]] << 32 | 2 << 48
    roots[pairs] |= bases[second_level]
    return roots


@compiled
def encode_short(text, slots, roots, out):  # type: ignore[no-untyped-def]
    """Do what ``encode_long`` does, with less to set up and to compile."""
    return _walk(text, 0, len(text), slots, roots, out, 0)


@compiled
def encode_long(text, slots, roots, lengths, inside, out):  # type: ignore[no-untyped-def]
    """Encode ``text`` (uint8 [n]) into ``out`` (uint16 [at least n]); return the number of ids."""
    n = len(text)
    cut1 = _seam(text, n // 4, inside)
    cut2 = _seam(text, max(cut1, n // 2), inside)
    cut3 = _seam(text, max(cut2, 3 * (n // 4)), inside)
    # Each lane writes where its text starts: there are never more ids than bytes.
    a0, a1, a2, a3 = 0, cut1, cut2, cut3
    o0, o1, o2, o3 = 0, cut1, cut2, cut3
    if min(min(cut1, cut2 - cut1), min(cut3 - cut2, n - cut3)) >= _MIN_LANE:
        at0, end0, node0, best0 = _enter(text, a0, roots)
        at1, end1, node1, best1 = _enter(text, a1, roots)
        at2, end2, node2, best2 = _enter(text, a2, roots)
        at3, end3, node3, best3 = _enter(text, a3, roots)
        while True:
            # A step looks at most 2 bytes further, and a match reaches at most 128 past its start.
            left = min(min(cut1 - end0, cut2 - end1), min(cut3 - end2, n - end3))
            if left <= 160:
                break
            for _ in range((left - 130) // 2):
                at0, end0, node0, best0, o0 = _step(
                    text, at0, end0, node0, best0, o0, slots, roots, out
                )
                at1, end1, node1, best1, o1 = _step(
                    text, at1, end1, node1, best1, o1, slots, roots, out
                )
                at2, end2, node2, best2, o2 = _step(
                    text, at2, end2, node2, best2, o2, slots, roots, out
                )
                at3, end3, node3, best3, o3 = _step(
                    text, at3, end3, node3, best3, o3, slots, roots, out
                )
        # Each lane is inside a token: take it up again where that token starts.
        a0, a1 = end0 - lengths[best0], end1 - lengths[best1]
        a2, a3 = end2 - lengths[best2], end3 - lengths[best3]
    o0 = _walk(text, a0, cut1, slots, roots, out, o0)
    o1 = _walk(text, a1, cut2, slots, roots, out, o1)
    o2 = _walk(text, a2, cut3, slots, roots, out, o2)
    o3 = _walk(text, a3, n, slots, roots, out, o3)
    o0 = _close_gap(out, cut1, o1, o0)
    o0 = _close_gap(out, cut2, o2, o0)
    return _close_gap(out, cut3, o3, o0)


@compiled
def _seam(text, start, inside):  # type: ignore[no-untyped-def]
    """Return the first position from ``start`` where no token can span the cut, or the end."""
    for at in range(max(start, 1), len(text)):
        if not inside[np.int64(text[at - 1]) | np.int64(text[at]) << 8]:
            return at
    return len(text)


@compiled
def _enter(text, start, roots):  # type: ignore[no-untyped-def]
    """Start a token: the next byte to test, the end of the best match, its node and its id."""
    root = roots[np.int64(text[start]) | np.int64(text[start + 1]) << 8]
    return start + 2, start + (root >> 48), root & 0xFFFFFFFF, (root >> 32) & 0xFFFF


@compiled
def _step(text, at, end, node, best, o, slots, roots, out):  # type: ignore[no-untyped-def]
    """Follow one byte, or, where the trie has no such child, emit the token and start the next.

    Both outcomes are computed and masks choose between them: a branch here is mispredicted about
    once a token.
    """
    byte = np.int64(text[at])
    slot = slots[node + byte]
    follows = -np.int64((slot & 511) == byte)
    out[o] = best
    o += 1 + follows
    root = roots[np.int64(text[end]) | np.int64(text[end + 1]) << 8]

    value = (slot >> 32) & 0xFFFF
    is_token = -np.int64(value != 0)
    longer_end = end ^ ((end ^ (at + 1)) & is_token)
    longer_best = best ^ ((best ^ value) & is_token)

    new_at = end + 2
    new_end = end + (root >> 48)
    new_node = root & 0xFFFFFFFF
    new_best = (root >> 32) & 0xFFFF
    return (
        new_at ^ ((new_at ^ (at + 1)) & follows),
        new_end ^ ((new_end ^ longer_end) & follows),
        new_node ^ ((new_node ^ ((slot & 0xFFFFFFFF) >> 9)) & follows),
        new_best ^ ((new_best ^ longer_best) & follows),
        o,
    )


@compiled
def _walk(text, start, stop, slots, roots, out, o):  # type: ignore[no-untyped-def]
    """Encode ``text[start:stop]`` token by token into ``out`` from ``o``; return the new ``o``."""
    while start < stop:
        if start + 1 == stop:
            # A pair may match one byte only: 0xFF starts no longer token, so it never joins.
            root = roots[np.int64(text[start]) | 0xFF << 8]
            out[o] = (root >> 32) & 0xFFFF
            return o + 1
        at, end, node, best = _enter(text, start, roots)
        while at < stop and node != 0:
            byte = np.int64(text[at])
            slot = slots[node + byte]
            if (slot & 511) != byte:
                break
            at += 1
            node = (slot & 0xFFFFFFFF) >> 9
            value = (slot >> 32) & 0xFFFF
            if value != 0:
                end, best = at, value
        out[o] = best
        o += 1
        start = end
    return o


@compiled
def _close_gap(out, start, stop, to):  # type: ignore[no-untyped-def]
    """Move ``out[start:stop]`` down to ``to``; return where it ends."""
    if start != to:
        for i in range(stop - start):
            out[to + i] = out[start + i]
    return to + stop - start
