"""Which documents share a row, in which order, and that a row holds them and nothing else."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvkit import BinidxWriter, open_binidx
from rwkvkit.data.binidx import Binidx
from rwkvkit.errors import DataError
from rwkvkit.train.batch import Batch, Sampler
from rwkvkit.train.orders import make_samples, validation_samples
from rwkvkit.train.packing import cut, pack, shuffled
from rwkvkit.train.sampling import SamplingConfig

SIZE = 16


def dataset(folder: Path, sizes: list[int], *, masked: bool = True) -> Binidx:
    """Documents whose every token tells its place; those with a place divisible by 3 count."""
    with BinidxWriter(folder / "data", np.int32, masked=masked) as writer:
        start = 0
        for size in sizes:
            tokens = 1 + np.arange(start, start + size)
            writer.add(tokens, tokens % 3 == 0 if masked else None)
            start += size
    return open_binidx(folder / "data")


def samples_of(data: Binidx, order: str, *, batch: int = 2, **more: int) -> Sampler:
    return make_samples(
        SamplingConfig(order=order, **more),
        data,
        ctx_len=SIZE,
        vocab_size=10**6,
        global_batch=batch,
        seed=1,
    )


def targets(batch: Batch) -> list[int]:
    """The targets of all positions that a document takes, in order of their place."""
    return sorted(batch.y[batch.y > 0].tolist())


def wanted(data: Binidx) -> list[int]:
    return sorted(token for document in data for token in document[1:].tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 20), st.integers(0, 5))
def test_every_position_stands_in_one_row_and_no_row_is_too_full(sizes, size, seed) -> None:
    pieces = cut(np.array(sizes, np.int32), size)
    rows = pack(pieces, seed)
    starts = np.cumsum([0, *sizes])
    positions = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(rows.starts, rows.lengths, strict=True)] or [[]]
    )
    documents = [np.arange(s, s + max(0, n - 1)) for s, n in zip(starts, sizes, strict=False)]
    assert sorted(positions) == np.concatenate([*documents, []]).tolist()
    filled = [rows.lengths[a:b].sum() for a, b in zip(rows.first, rows.first[1:], strict=False)]
    assert all(0 < n <= size for n in filled)
    if len(filled) > 1:  # two rows that fit into one would be one: best fit opens no row in vain
        assert sum(sorted(filled)[:2]) > size


def test_best_fit_wastes_little() -> None:
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(5.5, 1, 20_000), 2, 4096).astype(np.int32)
    rows = pack(cut(sizes, 4096), 0)
    assert rows.padding < 0.01
    again, other = pack(cut(sizes, 4096), 0), pack(cut(sizes, 4096), 1)
    assert np.array_equal(rows.starts, again.starts)
    assert not np.array_equal(rows.starts, other.starts)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64, 65, 1000])
def test_each_pass_is_another_permutation(count) -> None:
    orders = shuffled(np.arange(3 * count), count, seed=7).reshape(3, count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count > 50:
        assert not (orders[0] == orders[1]).mean() > 0.2
        assert not (orders[0] == np.arange(count)).mean() > 0.2
        assert abs(np.corrcoef(orders[0], np.arange(count))[0, 1]) < 0.4
    parts = [shuffled(np.arange(i, i + 1), count, seed=7)[0] for i in range(count, 2 * count)]
    assert parts == orders[1].tolist()


@pytest.mark.parametrize("order", ["packed", "padded", "infctx"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_pass_reads_every_target_once_with_its_own_mask(tmp_path, order, masked) -> None:
    sizes = [1, 5, 40, 17, 18, 2, 3, 9, 16, 0, 33, 7]
    data = dataset(tmp_path, sizes, masked=masked)
    samples = samples_of(data, order, batch=3)
    width = samples.sample_tokens
    if order == "padded":
        batches = []
        while samples.tokens(3 * len(batches)) < samples.once:
            batches.append(samples.read(1 + 3 * len(batches), 3))
        assert samples.tokens(3 * len(batches)) == samples.once
        assert samples.once == sum(batch.x.numel() for batch in batches)
        assert len({batch.x.shape[1] for batch in batches}) > 1
    else:
        batches = [samples.read(1, samples.once // width)]
        assert batches[0].x.numel() == samples.once == samples.tokens(len(batches[0].x))
    assert sorted(itertools.chain(*map(targets, batches))) == wanted(data)
    for batch in batches:
        real = batch.y > 0
        assert (batch.y == batch.x + 1)[real].all()
        assert (batch.mask == ((batch.y % 3 == 0) if masked else True) * real).all()
        follows = batch.x[:, 1:] == batch.y[:, :-1]
        assert (batch.resets[:, 1:] | follows | ~real[:, 1:]).all()
        assert batch.resets[:, 0].all() | (order == "padded")
    firsts = {int(batch.x[r, t]) for batch in batches for r, t in batch.resets.nonzero()}
    starts = np.cumsum([0, *sizes])[:-1]
    assert {1 + int(s) for s, n in zip(starts, sizes, strict=True) if n > 1} <= firsts


@pytest.mark.parametrize("order", ["packed", "padded", "infctx"])
def test_parts_of_a_batch_are_those_of_the_whole_and_passes_differ(tmp_path, order) -> None:
    data = dataset(tmp_path, [5, 9, 17, 3, 12, 30, 2, 8, 6, 15, 11, 4, 7] * 3)
    samples = samples_of(data, order, batch=4)
    for step in range(12):
        whole = samples.read(1 + 4 * step, 4)
        for first in (0, 2):
            part = samples.read(1 + 4 * step + first, 2)
            for name in ("x", "y", "mask", "resets"):
                assert (getattr(part, name) == getattr(whole, name)[first : first + 2]).all()
    steps = [samples.read(1 + 4 * step, 4).x.tolist() for step in range(12)]
    again = samples_of(data, order, batch=4)
    assert [again.read(1 + 4 * step, 4).x.tolist() for step in range(12)] == steps
    count = round(samples.once / samples.sample_tokens)
    passes = [
        [targets(samples.read(1 + at, 1)) for at in range(turn * count, (turn + 1) * count)]
        for turn in (0, 1)
    ]
    assert passes[0] != passes[1]
    assert sorted(itertools.chain(*passes[0])) == sorted(itertools.chain(*passes[1]))


def test_documents_of_a_similar_length_are_padded_together(tmp_path) -> None:
    rng = np.random.default_rng(0)
    data = dataset(tmp_path, rng.integers(2, SIZE + 1, 400).tolist())
    padded = samples_of(data, "padded", batch=8)
    assert "1.3% of the positions are padding" in padded.lines[-1]
    one = sum(
        int((samples.y == 0).sum()) for samples in (padded.read(1 + 8 * i, 8) for i in range(50))
    )
    assert one / padded.once == pytest.approx(0.013, abs=5e-4)


def test_lines_say_what_is_done_and_why(tmp_path) -> None:
    data = dataset(tmp_path, [5, 40, 17, 100, 8])
    assert samples_of(data, "auto").lines == (
        "order packed: the dataset has a loss mask",
        "2 documents longer than 16 tokens are cut into pieces that do not see each other; "
        "order infctx would carry the state",
        "5 documents in 11 samples, 6.2% of the positions are padding",
    )
    assert samples_of(data, "infctx").lines[1:] == (
        "7 segments of 16 tokens a sample: the longest document needs them; "
        "gradients reach back over 4 of them",
        "5 documents in 2 samples, 26.3% of the positions are padding",
    )
    lines = samples_of(data, "infctx", segments=2, truncate=0).lines
    assert "2 documents longer than 32 tokens are cut into pieces" in lines[1]
    assert (
        "2 segments of 16 tokens a sample: the recipe says so; gradients reach back to" in lines[2]
    )
    plain = dataset(tmp_path, [40, 50], masked=False)
    assert samples_of(plain, "auto").lines[0] == "order cubic: the dataset has no loss mask"


@pytest.mark.parametrize("order", ["cubic", "packed", "infctx"])
def test_held_out_data_is_read_whole(tmp_path, order) -> None:
    data = dataset(tmp_path, [5, 40, 17, 8], masked=False)
    config = SamplingConfig(order=order)
    samples = validation_samples(order, config, data, ctx_len=SIZE, vocab_size=10**6, seed=0)
    batch = samples.read(1, len(samples.rows))
    assert targets(batch) == (list(range(2, 71)) if order == "cubic" else wanted(data))


def test_documents_without_a_target(tmp_path) -> None:
    with pytest.raises(DataError, match="no document has two tokens"):
        samples_of(dataset(tmp_path, [1, 1, 0]), "packed")


@pytest.mark.parametrize("order", ["cubic", "packed", "padded", "infctx"])
def test_a_mask_that_counts_no_token(tmp_path, order) -> None:
    with BinidxWriter(tmp_path / "data", masked=True) as writer:
        for _ in range(20):
            writer.add(np.arange(1, 10), np.zeros(9))
    data = open_binidx(tmp_path / "data")
    with pytest.raises(DataError, match="counts no token") as caught:
        samples_of(data, order)
    assert "chats with an answer" in caught.value.hint
    if order != "padded":
        config = SamplingConfig(order=order)
        with pytest.raises(DataError, match="counts no token"):
            validation_samples(order, config, data, ctx_len=SIZE, vocab_size=10**6, seed=0)
