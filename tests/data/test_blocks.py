import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkvkit.data.blocks import PIECE_BYTES, by_key, in_order


def listed(blocks):
    """Return places and sizes of all documents in the order of the output, and check each block."""
    places, sizes, n_blocks = [], [], 0
    for block in blocks:
        n_blocks += 1
        assert len(block.sizes)
        order = np.argsort(block.targets, kind="stable")
        filled = block.sizes > 0  # documents of no tokens may stand anywhere between the others
        assert np.array_equal(block.sizes[order][filled[order]], block.ordered[block.ordered > 0])
        stops = block.targets[order] + block.sizes[order]
        assert np.array_equal(np.concatenate([[0], stops[:-1]])[: len(stops)], block.targets[order])
        assert block.n_tokens == (stops[-1] if len(stops) else 0)
        places += block.places[order].tolist()
        sizes += block.ordered.tolist()
    return places, sizes, n_blocks


@settings(deadline=None)
@example([(0, 1), (2**64 - 1, 2)], 2, 10**6)
@example([(0, 1), (2**64 - 1, 2)], 2, 1)
@given(
    st.lists(st.tuples(st.integers(0, 2) | st.integers(0, 2**64 - 1), st.integers(1, 400))),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 1000, 10**6]),
)
def test_documents_are_sorted_by_key_whatever_the_blocks(documents, width, n_bytes):
    keys = np.array([key for key, _ in documents], np.uint64)
    sizes = np.array([size for _, size in documents], np.int32)
    places = np.cumsum(sizes, dtype=np.int64) - sizes
    order = np.argsort(keys, kind="stable")
    found = listed(by_key(keys, places, sizes, width, n_bytes))
    assert found[:2] == (places[order].tolist(), sizes[order].tolist())


def test_blocks_of_hashed_keys_are_about_as_large_as_they_may_be():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 200, 50_000).astype(np.int32)
    keys = rng.integers(0, 2**64, len(sizes), dtype=np.uint64)
    places = np.cumsum(sizes, dtype=np.int64) - sizes
    blocks = list(by_key(keys, places, sizes, 2, 10**6))
    taken = [2 * block.n_tokens + PIECE_BYTES * len(block.sizes) for block in blocks]
    assert max(taken) < 1.1 * 10**6
    assert np.mean(taken) > 0.9 * 10**6
    assert all((np.diff(block.places) > 0).all() for block in blocks)  # as they lie


def test_sizes_are_counted_in_64_bits():
    """Whatever numpy makes of an int32 array times a number: 1.26 keeps it int32."""
    places = np.arange(3) << 30
    blocks = list(in_order(places, np.full(3, 2**30, np.int32), 2, 1 << 24))
    assert [block.places.tolist() for block in blocks] == [[place] for place in places.tolist()]


@pytest.mark.parametrize("n_bytes", [1, 500, 10**4])
def test_documents_in_order_stay_in_order(n_bytes):
    sizes = np.random.default_rng(0).integers(1, 200, 300).astype(np.int32)
    places = np.random.default_rng(1).permutation(10**6)[:300]
    blocks = list(in_order(places, sizes, 2, n_bytes))
    assert listed(blocks)[:2] == (places.tolist(), sizes.tolist())
    for block in blocks:
        taken = 2 * block.n_tokens + PIECE_BYTES * len(block.sizes)
        assert taken <= n_bytes or len(block.sizes) == 1
