"""The trie of a vocabulary as a packed double array, which ``lanes`` walks.

A trie node owns a *base*; its child for byte ``c`` is the slot ``base + c``. Bases are unique, so
a slot belongs to the node that asks for it exactly when the byte stored in it is ``c``. Only one
path leads to a node, so the longest token along it is known when the trie is built. One uint64, a
*cell*, holds what there is to know of a node::

    bits 0-15   the id of the longest token on the way here, this node included
    bits 16-31  the byte that leads here, or 256 in an empty slot, which no byte equals
    bits 32-55  the base of this node's own children, 0 for none (slots 0-255 are always empty)
    bits 56-63  how far the walk moves on, from the byte it looks at to the third of the next token,
                if no child follows: a signed number, 2 where this node is a token itself

The first two bytes of a token are looked up at once, in a table of 65,536 *roots*, cells too; the
byte in them means nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_EMPTY = 256
_FIRST_BASE = 512  # below lie the slots of base 0, which must stay empty, and of no node
_MAX_MISSES = 40  # failed placements after which the search starts further on

ROOT_BYTES = 2
"""Bytes that a root stands for."""
CHECK_SHIFT, BASE_SHIFT, AHEAD_SHIFT = 16, 32, 56
"""Where the parts of a cell begin."""


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
    slots = np.full(int(bases.max()) + 2 * _EMPTY, _EMPTY << CHECK_SHIFT, np.int64)
    slots[bases[nodes.parents[children]] + nodes.chars[children]] = _cells(nodes, bases, children)

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
    ahead: NDArray[np.int64]
    """How far the walk moves on from there if no child follows; see the module's docstring."""


def _nodes(ids: NDArray[np.int64], sizes: NDArray[np.int64], text: NDArray[np.int64]) -> _Nodes:
    starts = np.cumsum(sizes) - sizes
    nothing = np.zeros(1, np.int64)
    levels = [(nothing, nothing, nothing, nothing)]  # the last of them lengths of tokens
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
    parents, chars, best, lengths = (np.concatenate(column) for column in zip(*levels, strict=True))
    depths = np.repeat(np.arange(len(levels)), [len(level[0]) for level in levels])
    # A root is never looked at before its two bytes are read.
    behind = np.maximum(depths, ROOT_BYTES) - lengths
    return _Nodes(parents, chars, best, ROOT_BYTES - behind)


def _place(parents: NDArray[np.int64], chars: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose a base for every node that has children, below the root.

    Nodes with several children go first, each to the first place where all fit; nodes with one
    child then fill the holes. Nodes behind an ASCII byte have a region of their own, and so have
    the others: a text walks mostly in one of them, which then fits the cache better.
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

    def place(which: NDArray[np.bool_], start: int, *, several: bool) -> None:
        patience = _MAX_MISSES if several else _MAX_MISSES // 10
        for node in np.flatnonzero(which).tolist():
            own = flat[firsts[node] : firsts[node] + counts[node]]
            base, misses = search(own[0], own[1:], start)
            if misses > patience:
                start = used.find(0, start + 1 + (misses // 4 if several else 0))
            bases[node] = base
            taken[base] = 1
            for byte in own:
                used[base + byte] = 1

    counts[0] = 0  # the root has no place
    for is_ascii in (True, False):
        first = max(used.rfind(1) + 1 - _EMPTY, _FIRST_BASE)
        own = (chars < 0x80) == is_ascii
        place(own & (counts > 1), first, several=True)
        place(own & (counts == 1), first, several=False)
    return bases


def _cells(nodes: _Nodes, bases: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
    return (
        nodes.best[which]
        | nodes.chars[which] << CHECK_SHIFT
        | bases[which] << BASE_SHIFT
        | nodes.ahead[which] << AHEAD_SHIFT
    )


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
