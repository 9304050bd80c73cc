import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rwkvkit.data.order import DocumentIds, passes, shuffle_keys

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def make_ids(triples):
    columns = np.array(triples, np.uint64).reshape(-1, 3).T
    return DocumentIds(*columns)


IDS = make_ids([(0, 0, 0), (0, 0, 50), (0, 1, 0), (1, 0, 0), (1, 0, 2**40)])


@given(st.integers(-(2**70), 2**70), st.integers(0, 10))
def test_keys_follow_the_documented_formula(seed, number):
    documents = np.array([0, 2, 4, 4])
    copies = np.array([0, 0, 0, 1], np.uint64)
    keys = shuffle_keys(IDS, documents, copies, number, seed)
    for key, document, copy in zip(keys.tolist(), documents, copies, strict=True):
        expected = mix(seed & MASK)
        words = [number, IDS.sources[document], IDS.files[document], IDS.offsets[document], copy]
        for word in words:
            expected = mix(expected ^ int(word))
        assert key == expected


def test_splitmix64_reference_value():
    # The first output of the published generator seeded with 0.
    assert mix(0) == 0xE220A8397B1DCDAF


def orders(ids, repeats, epochs, seed):
    return [order.tolist() for order in passes(ids, repeats, epochs=epochs, seed=seed)]


def test_without_a_seed_sources_stand_in_a_row():
    assert orders(IDS, [1, 2], 2, None) == [[0, 1, 2, 3, 4, 3, 4]] * 2


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_each_pass_holds_each_document_as_often_as_its_source_says(seed, a, b, epochs):
    made = orders(IDS, [a, b], epochs, seed)
    assert len(made) == epochs
    for order in made:
        assert sorted(order) == sorted([0, 1, 2] * a + [3, 4] * b)


def test_orders_differ_between_passes_and_seeds_and_are_spread():
    ids = make_ids([(0, 0, i) for i in range(2000)])
    first, second = orders(ids, [1], 2, 1)
    (other,) = orders(ids, [1], 1, 2)
    for one, two in ((first, second), (first, other), (first, list(range(2000)))):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
    assert orders(ids, [1], 2, 1) == [first, second]


def test_a_document_keeps_its_place_relative_to_others_when_some_leave():
    everything = orders(IDS, [1, 1], 1, 7)[0]
    fewer = orders(make_ids([(0, 0, 0), (0, 1, 0), (1, 0, 0)]), [1, 1], 1, 7)[0]
    names = {0: 0, 1: 2, 2: 3}
    assert [names[i] for i in fewer] == [i for i in everything if i in names.values()]


def test_a_source_may_be_empty():
    ids = make_ids([(1, 0, 0)])
    assert orders(ids, [3, 2, 5], 1, None) == [[0, 0]]
    assert orders(make_ids([]), [3], 1, 5) == [[]]
