"""Greedy longest-match encoding of whole buffers: a packed double array and the loops over it.

A trie node owns a *base*; its child for byte ``c`` is the slot ``base + c``. Bases are unique, so
a slot belongs to the node that asks for it exactly when the byte stored in it is ``c``. Only one
path leads to a node, so the longest token along it is known when the trie is built. One uint64, a
*cell*, holds what there is to know of a node::

    bits 0-8    the byte that leads here, or 256 in an empty slot, which no byte equals
    bits 9-31   the base of this node's own children, 0 for none (slots 0-255 are always empty)
    bits 32-47  the id of the longest token on the way here, this node included
    bits 48-55  the length of that token, in bytes

The first two bytes of a token are looked up at once, in a table of 65,536 *roots*, cells too; the
byte in them means nothing.

Encoding is a chain of dependent loads, so one walk leaves the processor idle most of the time. The
fast loop therefore walks several lanes at once, without branches. Lanes start at *seams*: where a
byte pair lies inside no token, every encoding has a token boundary, so text cut there encodes to
the same ids as the whole. A lane that is done takes over half of what the slowest has left.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvkit.tokenizer.jit import compiled

_EMPTY = 256
_FIRST_BASE = 512  # below lie the slots of base 0, which must stay empty, and of no node
_MAX_MISSES = 40  # failed placements after which the search starts further on
_MIN_LANE = 256  # bytes; below, a lane would end before it started
_LANES = 4
_WORTHWHILE = 4096  # bytes left in a lane, of which another takes half
_MOST_PIECES = 256  # of a text

# numba makes a float of an uint64 and a bare number.
_1 = np.uint64(1)
_2 = np.uint64(2)
_8 = np.uint64(8)
_9 = np.uint64(9)
_BYTE_MASK = np.uint64(0x1FF)
_BASE_MASK = np.uint64(0x7FFFFF)
_ID_SHIFT = np.uint64(32)
_LENGTH_SHIFT = np.uint64(48)


class Tables(NamedTuple):
    """What the loops read; the layout of ``slots`` and ``roots`` is in the module's docstring."""

    slots: NDArray[np.uint64]
    roots: NDArray[np.uint64]
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
    nodes = _nodes(ids, sizes, text)
    bases = _place(nodes.parents, nodes.chars)

    children = np.flatnonzero(nodes.parents)  # below the first level, which the roots hold
    slots = np.full(int(bases.max()) + 2 * _EMPTY, _EMPTY, np.int64)
    slots[bases[nodes.parents[children]] + nodes.chars[children]] = nodes.chars[children] | _cells(
        nodes, bases, children
    )

    last = np.zeros(len(text), bool)
    last[np.cumsum(sizes) - 1] = True
    starts = np.flatnonzero(~last)
    inside = np.zeros(65536, bool)
    inside[text[starts] | text[starts + 1] << 8] = True
    return Tables(slots.view(np.uint64), _roots(nodes, bases).view(np.uint64), inside)


class _Nodes(NamedTuple):
    """Every trie node, the root first, level by level: [nodes].

    The children of a node stand together, in the order of their bytes.
    """

    parents: NDArray[np.int64]
    chars: NDArray[np.int64]
    """The byte that leads there."""
    best: NDArray[np.int64]
    """Id of the longest token on the way there, itself included."""
    lengths: NDArray[np.int64]
    """Bytes in that token."""


def _nodes(ids: NDArray[np.int64], sizes: NDArray[np.int64], text: NDArray[np.int64]) -> _Nodes:
    starts = np.cumsum(sizes) - sizes
    nothing = np.zeros(1, np.int64)
    levels = [(nothing, nothing, nothing, nothing)]
    reached = np.zeros(len(ids), np.int64)
    n_nodes = first_above = 0
    longer = np.arange(len(ids))
    for depth in range(int(sizes.max())):
        first_above, n_nodes = n_nodes, n_nodes + len(levels[-1][0])
        longer = longer[sizes[longer] > depth]
        keys, which = np.unique(
            reached[longer] * 256 + text[starts[longer] + depth], return_inverse=True
        )
        reached[longer] = n_nodes + which
        parents = keys >> 8
        best, lengths = (column[parents - first_above] for column in levels[-1][2:])
        ending = sizes[longer] == depth + 1
        best[which[ending]] = ids[longer[ending]]
        lengths[which[ending]] = depth + 1
        if depth == 0:
            best[keys == 0xFF] = 0
        levels.append((parents, keys & 255, best, lengths))
    return _Nodes(*(np.concatenate(column) for column in zip(*levels, strict=True)))


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


def _cells(nodes: _Nodes, bases: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cells of some nodes, without the bytes that lead there."""
    return bases[which] << 9 | nodes.best[which] << 32 | nodes.lengths[which] << 48


def _roots(nodes: _Nodes, bases: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the table of the first two bytes, ``first + 256 * second``."""
    first_level = np.flatnonzero(nodes.parents[1:] == 0) + 1
    singles = np.zeros(256, np.int64)
    # Their bases are left out: another byte follows, which leads nowhere.
    singles[nodes.chars[first_level]] = _cells(nodes, np.zeros_like(bases), first_level)
    roots = np.tile(singles, 256)
    second_level = np.flatnonzero(np.isin(nodes.parents, first_level))
    pairs = nodes.chars[nodes.parents[second_level]] | nodes.chars[second_level] << 8
    roots[pairs] = _cells(nodes, bases, second_level)
    return roots


@compiled
def encode_short(text, slots, roots, out):  # type: ignore[no-untyped-def]
    """Do what ``encode_long`` does, with less to set up and to compile."""
    return _walk(text, 0, len(text), slots, roots, out, 0)


@compiled
def encode_long(text, slots, roots, inside, out):  # type: ignore[no-untyped-def]
    """Encode ``text`` (uint8 [n]) into ``out`` (uint16 [at least n]); return the number of ids.

    Each piece of the text writes where it starts, since there are never more ids than bytes; in
    the end the pieces move together.
    """
    starts = np.zeros(_MOST_PIECES, np.int64)  # of the next token, once its lane has begun
    stops = np.zeros(_MOST_PIECES, np.int64)
    outs = np.zeros(_MOST_PIECES, np.int64)  # where the next id goes
    firsts = np.zeros(_MOST_PIECES, np.int64)
    after = np.full(_MOST_PIECES, -1, np.int64)  # which piece of the text comes next
    pieces = np.arange(_LANES)  # the one that each lane is in
    for i in range(_LANES):
        at = 0 if i == 0 else _seam(text, max(starts[i - 1], i * (len(text) // _LANES)), inside)
        starts[i] = outs[i] = firsts[i] = at
        if i:
            stops[i - 1] = at
            after[i - 1] = i
    stops[_LANES - 1] = len(text)
    n_pieces = _LANES

    left = stops[pieces] - starts[pieces]
    while left.min() >= _MIN_LANE:
        _run_lanes(text, pieces, starts, stops, outs, slots, roots, out)
        left = stops[pieces] - starts[pieces]
        lane = left.argmin()
        slowest = pieces[left.argmax()]
        if left.max() < _WORTHWHILE or n_pieces == _MOST_PIECES:
            break
        middle = starts[slowest] + (stops[slowest] - starts[slowest]) // 2
        cut = _seam(text, middle, inside)
        if cut >= stops[slowest]:
            break
        ended = pieces[lane]
        outs[ended] = _walk(text, starts[ended], stops[ended], slots, roots, out, outs[ended])
        starts[ended] = stops[ended]
        new = n_pieces
        n_pieces += 1
        starts[new] = outs[new] = firsts[new] = cut
        stops[new], stops[slowest] = stops[slowest], cut
        after[new], after[slowest] = after[slowest], new
        pieces[lane] = new
        left = stops[pieces] - starts[pieces]

    for i in range(n_pieces):
        outs[i] = _walk(text, starts[i], stops[i], slots, roots, out, outs[i])
    to = outs[0]
    piece = after[0]
    while piece >= 0:
        to = _close_gap(out, firsts[piece], outs[piece], to)
        piece = after[piece]
    return to


@compiled
def _run_lanes(text, pieces, starts, stops, outs, slots, roots, out):  # type: ignore[no-untyped-def]
    """Encode in all lanes until one of them is near its stop; each then is where a token starts."""
    p0, p1, p2, p3 = pieces[0], pieces[1], pieces[2], pieces[3]
    stop0, stop1, stop2, stop3 = stops[p0], stops[p1], stops[p2], stops[p3]
    start0, start1 = np.uint64(starts[p0]), np.uint64(starts[p1])
    start2, start3 = np.uint64(starts[p2]), np.uint64(starts[p3])
    o0, o1, o2, o3 = (
        np.uint64(outs[p0]),
        np.uint64(outs[p1]),
        np.uint64(outs[p2]),
        np.uint64(outs[p3]),
    )
    at0, at1, at2, at3 = start0 + _2, start1 + _2, start2 + _2, start3 + _2
    cell0, cell1 = _root(text, start0, roots), _root(text, start1, roots)
    cell2, cell3 = _root(text, start2, roots), _root(text, start3, roots)
    while True:
        # A step looks at most 2 bytes further, and a match reaches at most 128 past its start.
        left = min(
            min(stop0 - np.int64(start0), stop1 - np.int64(start1)),
            min(stop2 - np.int64(start2), stop3 - np.int64(start3)),
        )
        if left <= 160:
            break
        for _ in range((left - 130) // 2):
            at0, start0, cell0, o0 = _step(text, at0, start0, cell0, o0, slots, roots, out)
            at1, start1, cell1, o1 = _step(text, at1, start1, cell1, o1, slots, roots, out)
            at2, start2, cell2, o2 = _step(text, at2, start2, cell2, o2, slots, roots, out)
            at3, start3, cell3, o3 = _step(text, at3, start3, cell3, o3, slots, roots, out)
    starts[p0], starts[p1], starts[p2], starts[p3] = start0, start1, start2, start3
    outs[p0], outs[p1], outs[p2], outs[p3] = o0, o1, o2, o3


@compiled
def _seam(text, start, inside):  # type: ignore[no-untyped-def]
    """Return the first position from ``start`` where no token can span the cut, or the end."""
    for at in range(max(start, 1), len(text)):
        if not inside[np.int64(text[at - 1]) | np.int64(text[at]) << 8]:
            return at
    return len(text)


@compiled
def _root(text, at, roots):  # type: ignore[no-untyped-def]
    """Return the cell for the first two bytes of a token."""
    return roots[np.uint64(text[at]) | np.uint64(text[at + _1]) << _8]


@compiled
def _step(text, at, start, cell, o, slots, roots, out):  # type: ignore[no-untyped-def]
    """Follow one byte, or, where the trie has no such child, emit the token and start the next.

    Both outcomes are computed and a mask chooses between them: a branch here is mispredicted about
    once a token. The mask is made by arithmetic, since LLVM turns what it knows to be a choice
    between loaded values into that branch. Unsigned positions spare the test for negative ones.

    Args:
        text: to encode.
        at: the byte to look at.
        start: where the token starts.
        cell: of the node that the bytes from ``start`` to ``at`` lead to.
        o: where the token's id goes.
        slots: see the module's docstring, also for ``roots``.
        roots: of tokens.
        out: the ids.
    """
    byte = np.uint64(text[at])
    slot = slots[((cell >> _9) & _BASE_MASK) + byte]
    # All ones where the byte is the slot's own, else 0.
    follows = np.uint64((np.int64((slot & _BYTE_MASK) ^ byte) - 1) >> 63)
    out[o] = np.uint16(cell >> _ID_SHIFT)
    end = start + (cell >> _LENGTH_SHIFT)
    root = _root(text, end, roots)
    return (
        (end + _2) ^ (((end + _2) ^ (at + _1)) & follows),
        end ^ ((end ^ start) & follows),
        root ^ ((root ^ slot) & follows),
        o + _1 + follows,
    )


@compiled
def _walk(text, start, stop, slots, roots, out, o):  # type: ignore[no-untyped-def]
    """Encode ``text[start:stop]`` token by token into ``out`` from ``o``; return the new ``o``."""
    while start < stop:
        second = np.uint64(text[start + 1]) if start + 1 < stop else np.uint64(0xFF)
        # At the end stands 0xFF instead, which starts no longer token, so that it never joins.
        cell = roots[np.uint64(text[start]) | second << _8]
        at = start + 2
        while at < stop:
            byte = np.uint64(text[at])
            slot = slots[((cell >> _9) & _BASE_MASK) + byte]
            if (slot & _BYTE_MASK) != byte:
                break
            cell = slot
            at += 1
        out[o] = np.uint16(cell >> _ID_SHIFT)
        o += 1
        start += np.int64(cell >> _LENGTH_SHIFT)
    return o


@compiled
def _close_gap(out, start, stop, to):  # type: ignore[no-untyped-def]
    """Move ``out[start:stop]`` down to ``to``; return where it ends."""
    if start != to:
        for i in range(stop - start):
            out[to + i] = out[start + i]
    return to + stop - start
