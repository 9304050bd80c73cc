import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvkit.data.order import below, make_keys, sorted_order, threshold

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


@settings(deadline=None)
@given(
    st.integers(-(2**70), 2**70),
    st.integers(0, MASK),
    st.lists(st.integers(0, MASK), min_size=1, max_size=4),
)
def test_keys_follow_the_documented_formula(seed, number, column):
    keys = make_keys(seed, (number, np.array(column, np.uint64), 1), len(column))
    for key, word in zip(keys.tolist(), column, strict=True):
        expected = mix(seed & MASK)
        for each in (number, word, 1):
            expected = mix(expected ^ each)
        assert key == expected


def test_splitmix64_reference_value():
    # The first output of the published generator seeded with 0.
    assert mix(0) == 0xE220A8397B1DCDAF
    assert make_keys(0, (), 1).tolist() == [0xE220A8397B1DCDAF]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9) | st.integers(0, MASK)))
def test_equal_keys_keep_their_order(keys):
    order = sorted_order(np.array(keys, np.uint64)).tolist()
    assert order == sorted(range(len(keys)), key=keys.__getitem__)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, MASK), (2**63, 2**63 + 2**50), (5, 400), (7, 7), (MASK - 3000, MASK)],
)
@pytest.mark.parametrize("outlier", [None, 0, MASK])
def test_many_keys_however_they_lie(low, high, outlier):
    keys = np.random.default_rng(1).integers(low, high, 6000, dtype=np.uint64, endpoint=True)
    if outlier is not None:
        keys[3000] = outlier
    assert np.array_equal(sorted_order(keys), np.argsort(keys, kind="stable"))


def test_shares_of_the_keys():
    keys = make_keys(3, (np.arange(100_000, dtype=np.uint64),), 100_000)
    for share in (0.01, 0.25, 0.9):
        assert abs(below(keys, share).mean() - share) < 0.01
    assert below(np.array([0, MASK], np.uint64), 1.0).all()
    assert threshold(0.5) == 2**63
    assert below(np.array([2**63 - 1, 2**63], np.uint64), 0.5).tolist() == [True, False]
