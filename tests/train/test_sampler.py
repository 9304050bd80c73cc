"""The sampling order against the offsets recorded from the reference."""

import json
from pathlib import Path

import numpy as np
import pytest

from rwkvkit import BinidxWriter, open_binidx, sample_offsets
from rwkvkit.errors import DataError
from rwkvkit.train.sampler import MINI_EPOCH_SAMPLES, SampleReader

META = json.loads((Path(__file__).parents[1] / "golden/data/meta.json").read_text())


@pytest.mark.parametrize("case", META["sampling"], ids=range(len(META["sampling"])))
def test_reference_offsets(case: dict) -> None:
    for index, offset in zip(case["idx"], case["offset"], strict=True):
        ii = 1 + case["epoch"] * MINI_EPOCH_SAMPLES + index * case["world_size"] + case["rank"]
        assert sample_offsets(case["magic_prime"], case["ctx_len"], ii, 1).tolist() == [offset]


def test_every_slot_once_and_exact_beyond_64_bits() -> None:
    offsets = sample_offsets(365759, 512, 1, 365759)
    assert len(np.unique(offsets)) == 365759
    assert offsets.max() == 365758 * 512
    # A prime p % 3 == 2 near 2^45: ii³ · f needs 180 bits.
    prime, ii = 35184372088763, 35184372000000
    factor = int(prime * (5**0.5 - 1) / 2)
    assert sample_offsets(prime, 2, ii, 1)[0] == (factor * ii**3 % prime) * 2


def test_targets_are_inputs_moved_by_one(tmp_path: Path) -> None:
    with BinidxWriter(tmp_path / "data") as writer:
        writer.add(np.arange(100, dtype=np.uint16))
    reader = SampleReader(open_binidx(tmp_path / "data"), 11, 8, vocab_size=100)
    batch = reader.read(start=1, count=3)
    x, y = batch.x, batch.y
    assert batch.mask is None
    assert x.shape == y.shape == (3, 8)
    assert (y == x + 1).all()
    assert x[:, 0].tolist() == sample_offsets(11, 8, 1, 3).tolist()


def test_the_mask_stands_beside_the_targets(tmp_path: Path) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    with BinidxWriter(tmp_path / "data", masked=True) as writer:
        writer.add(tokens, mask=tokens % 3 == 0)
    samples = SampleReader(open_binidx(tmp_path / "data"), 11, 8, vocab_size=100).read(1, 3)
    assert samples.mask is not None
    assert (samples.mask == (samples.y % 3 == 0)).all()


def test_a_token_outside_the_vocabulary(tmp_path: Path) -> None:
    with BinidxWriter(tmp_path / "data") as writer:
        writer.add(np.full(100, 70, dtype=np.uint16))
    reader = SampleReader(open_binidx(tmp_path / "data"), 11, 8, vocab_size=64)
    with pytest.raises(DataError, match="token id 70 is outside the model's vocabulary of 64"):
        reader.read(start=1, count=1)
