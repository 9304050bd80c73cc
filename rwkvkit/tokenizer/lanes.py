"""Greedy longest-match encoding of whole buffers: the loops over a trie's tables.

A walk looks at one byte after another. It holds the cell of the node that the bytes of a token lead
to; where that node has no child for the next byte, the longest token on the way is what the text
begins with, and the walk moves on to the third byte of the next token, whose first two are a root.

That is a chain of dependent loads, so one walk leaves the processor idle most of the time. The fast
loop therefore walks several lanes at once, without branches. Lanes start at *seams*: where a byte
pair lies inside no token, every encoding has a token boundary, so text cut there encodes to the
same ids as the whole. A lane that is done takes over half of what the slowest has left.
"""

import numpy as np

from rwkvkit.tokenizer.jit import compiled
from rwkvkit.tokenizer.machine import choose, load8, load16, load64, move, store16
from rwkvkit.tokenizer.trie import AHEAD_SHIFT, BASE_SHIFT, CHECK_SHIFT, ROOT_BYTES

_MIN_LANE = 256  # bytes; below, a lane would end before it started
_LANES = 6  # as _run_lanes spells out
_NEAR = 32  # bytes before a lane's stop, where the fast loop ends
_WORTHWHILE = 4096  # bytes left in a lane, of which another takes half
_MOST_PIECES = 256  # of a text

# numba makes a float of an uint64 and a bare number.
_1 = np.uint64(1)
_2 = np.uint64(2)
_3 = np.uint64(3)
_8 = np.uint64(8)
_CHECK = np.uint64(CHECK_SHIFT)
_CHECK_MASK = np.uint64(0xFFFF)
_BASE = np.uint64(BASE_SHIFT)
_BASE_MASK = np.uint64(0xFFFFFF)


@compiled
def encode_short(text, slots, roots, out):  # type: ignore[no-untyped-def]
    """Do what ``encode_long`` does, with less to set up and to compile."""
    cell = _root(text, 0, len(text), roots)
    return _walk(text, ROOT_BYTES, len(text), cell, slots, roots, out, 0)


@compiled
def encode_long(text, slots, roots, inside, out):  # type: ignore[no-untyped-def]
    """Encode ``text`` (uint8 [n]) into ``out`` (uint16 [at least n]); return the number of ids.

    Each piece of the text writes where it starts, since there are never more ids than bytes; in
    the end the pieces move together.
    """
    firsts = np.empty(_MOST_PIECES, np.int64)  # where each piece of the text starts
    stops = np.empty(_MOST_PIECES, np.int64)
    after = np.empty(_MOST_PIECES, np.int64)  # which piece comes next in the text
    ats = np.empty(_MOST_PIECES, np.int64)  # the byte to look at
    cells = np.empty(_MOST_PIECES, np.uint64)  # of the node reached before it
    outs = np.empty(_MOST_PIECES, np.int64)  # where the next id goes
    pieces = np.empty(_LANES, np.int64)  # the one that each lane is in
    for i in range(_LANES):
        firsts[i] = outs[i] = _seam(text, i * (len(text) // _LANES), inside) if i else 0
        stops[i], after[i], pieces[i] = len(text), i + 1, i
        if i:
            stops[i - 1] = firsts[i]
    after[_LANES - 1] = -1
    for i in range(_LANES):
        ats[i] = firsts[i] + ROOT_BYTES
        cells[i] = _root(text, firsts[i], stops[i], roots)
    n_pieces = _LANES

    while True:
        fastest, least, slowest, most = _extremes(pieces, ats, stops)
        if least < _MIN_LANE:
            break
        _run_lanes(pieces, ats, stops, cells, outs, text, slots, roots, out)
        fastest, least, slowest, most = _extremes(pieces, ats, stops)
        if most < _WORTHWHILE or n_pieces == _MOST_PIECES:
            break
        ended, split, new = pieces[fastest], pieces[slowest], n_pieces
        cut = _seam(text, ats[split] + most // 2, inside)
        if cut >= stops[split]:
            break
        outs[ended] = _walk(
            text, ats[ended], stops[ended], cells[ended], slots, roots, out, outs[ended]
        )
        ats[ended] = stops[ended] + ROOT_BYTES
        n_pieces += 1
        firsts[new] = outs[new] = cut
        stops[new], stops[split] = stops[split], cut
        after[new], after[split] = after[split], new
        ats[new] = cut + ROOT_BYTES
        cells[new] = _root(text, cut, stops[new], roots)
        pieces[fastest] = new

    for i in range(n_pieces):
        outs[i] = _walk(text, ats[i], stops[i], cells[i], slots, roots, out, outs[i])
    to = outs[0]
    piece = after[0]
    while piece >= 0:
        to = _close_gap(out, firsts[piece], outs[piece], to)
        piece = after[piece]
    return to


@compiled
def _extremes(pieces, ats, stops):  # type: ignore[no-untyped-def]
    """Return the lane with the fewest bytes left, and how many, and the one with the most."""
    fastest = slowest = 0
    least = most = stops[pieces[0]] - ats[pieces[0]]
    for i in range(1, _LANES):
        left = stops[pieces[i]] - ats[pieces[i]]
        if left < least:
            fastest, least = i, left
        if left > most:
            slowest, most = i, left
    return fastest, least, slowest, most


@compiled
def _run_lanes(pieces, ats, stops, cells, outs, text, slots, roots, out):  # type: ignore[no-untyped-def]
    """Walk in all lanes until one of them is near its stop.

    What the lanes hold does not fit into registers, so addresses stand in for arrays and positions.
    """
    text_address, out_address = np.uint64(text.ctypes.data), np.uint64(out.ctypes.data)
    slots_address, roots_address = np.uint64(slots.ctypes.data), np.uint64(roots.ctypes.data)
    lane_ats = np.empty(_LANES, np.uint64)
    lane_stops = np.empty(_LANES, np.uint64)
    lane_cells = np.empty(_LANES, np.uint64)
    lane_outs = np.empty(_LANES, np.uint64)
    for i in range(_LANES):
        piece = pieces[i]
        lane_ats[i] = text_address + np.uint64(ats[piece])
        lane_stops[i] = text_address + np.uint64(stops[piece])
        lane_cells[i] = cells[piece]
        lane_outs[i] = out_address + (np.uint64(outs[piece]) << _1)
    at0, at1, at2, at3, at4, at5 = _six(lane_ats)
    stop0, stop1, stop2, stop3, stop4, stop5 = _six(lane_stops)
    cell0, cell1, cell2, cell3, cell4, cell5 = _six(lane_cells)
    o0, o1, o2, o3, o4, o5 = _six(lane_outs)
    while True:
        left = np.int64(
            min(stop0 - at0, stop1 - at1, stop2 - at2, stop3 - at3, stop4 - at4, stop5 - at5)
        )
        if left < _NEAR:
            break
        # A step moves on by at most two bytes, and reads the byte behind the one it looks at.
        for _ in range(left // 2 - 1):
            at0, cell0, o0 = _step(at0, cell0, o0, slots_address, roots_address)
            at1, cell1, o1 = _step(at1, cell1, o1, slots_address, roots_address)
            at2, cell2, o2 = _step(at2, cell2, o2, slots_address, roots_address)
            at3, cell3, o3 = _step(at3, cell3, o3, slots_address, roots_address)
            at4, cell4, o4 = _step(at4, cell4, o4, slots_address, roots_address)
            at5, cell5, o5 = _step(at5, cell5, o5, slots_address, roots_address)
    _set_six(lane_ats, at0, at1, at2, at3, at4, at5)
    _set_six(lane_cells, cell0, cell1, cell2, cell3, cell4, cell5)
    _set_six(lane_outs, o0, o1, o2, o3, o4, o5)
    for i in range(_LANES):
        piece = pieces[i]
        ats[piece] = np.int64(lane_ats[i] - text_address)
        cells[piece] = lane_cells[i]
        outs[piece] = np.int64((lane_outs[i] - out_address) >> _1)


@compiled
def _six(lanes):  # type: ignore[no-untyped-def]
    return lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5]


@compiled
def _set_six(lanes, a, b, c, d, e, f):  # type: ignore[no-untyped-def]
    lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5] = a, b, c, d, e, f


@compiled
def _step(at, cell, o, slots, roots):  # type: ignore[no-untyped-def]
    """Follow one byte, or, where the trie has no such child, emit the token and start the next.

    Both outcomes are computed, and one is chosen: a branch here is mispredicted about once a token.

    Args:
        at: address of the byte to look at.
        cell: of the node that the bytes before it lead to.
        o: address where the token's id goes.
        slots: address of the slots, and
        roots: of the roots; see ``trie``.

    Returns:
        The three that change.
    """
    byte = load8(at)
    slot = load64(slots + ((((cell >> _BASE) & _BASE_MASK) + byte) << _3))
    store16(o, cell)
    ahead = at + np.uint64(np.int64(cell) >> AHEAD_SHIFT)
    root = load64(roots + (load16(ahead - _2) << _3))
    follows = (slot >> _CHECK) & _CHECK_MASK == byte
    return (
        choose(follows, at + _1, ahead),
        choose(follows, slot, root),
        choose(follows, o, o + _2),
    )


@compiled
def _seam(text, start, inside):  # type: ignore[no-untyped-def]
    """Return the first position from ``start`` where no token can span the cut, or the end."""
    for at in range(max(start, 1), len(text)):
        if not inside[np.int64(text[at - 1]) | np.int64(text[at]) << 8]:
            return at
    return len(text)


@compiled
def _root(text, start, stop, roots):  # type: ignore[no-untyped-def]
    """Return the cell for the first two bytes of a token."""
    if start >= stop:
        return np.uint64(0)
    # At the end stands 0xFF instead, which no longer token has for its second byte.
    second = np.uint64(text[start + 1]) if start + 1 < stop else np.uint64(0xFF)
    return roots[np.uint64(text[start]) | second << _8]


@compiled
def _walk(text, at, stop, cell, slots, roots, out, o):  # type: ignore[no-untyped-def]
    """Encode up to ``stop`` into ``out`` from ``o``, going on where a lane was; return where to."""
    while at < stop + ROOT_BYTES:
        while at < stop:
            byte = np.uint64(text[at])
            slot = slots[((cell >> _BASE) & _BASE_MASK) + byte]
            if (slot >> _CHECK) & _CHECK_MASK != byte:
                break
            cell = slot
            at += 1
        out[o] = np.uint16(cell & _CHECK_MASK)
        o += 1
        at += np.int64(cell) >> AHEAD_SHIFT
        cell = _root(text, at - ROOT_BYTES, stop, roots)
    return o


@compiled
def _close_gap(out, start, stop, to):  # type: ignore[no-untyped-def]
    """Move ``out[start:stop]`` down to ``to``; return where it ends."""
    first = np.uint64(out.ctypes.data)
    target, source = first + (np.uint64(to) << _1), first + (np.uint64(start) << _1)
    move(target, source, np.uint64(stop - start) << _1)
    return to + stop - start
