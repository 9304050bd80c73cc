"""The mask beside a pair: written with it, read in the same places, and never wildly."""

import errno
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvkit import BinidxWriter, files, open_binidx
from rwkvkit.errors import DataError


@pytest.fixture
def prefix(tmp_path):
    with BinidxWriter(tmp_path / "d", masked=True) as writer:
        writer.add_many([1, 2, 3, 4], [3, 1], [0, 1, 1, 0])
        writer.add([5, 6], np.array([True, False]))
    content = (tmp_path / "d.mask").read_bytes()
    assert content == b"\0\1\1\0\1\0"
    assert writer.mask_sha256 == hashlib.sha256(content).hexdigest()
    return tmp_path / "d"


def test_it_is_read_in_the_places_of_the_tokens(prefix):
    data = open_binidx(prefix)
    data.verify()
    assert data.has_mask
    assert data.mask(0, 6).tolist() == [0, 1, 1, 0, 1, 0]
    assert data.mask(2, 3).tolist() == [1, 0, 1]
    for offset, n in ((-1, 1), (0, 7), (6, 1), (0, -1)):
        with pytest.raises(IndexError, match="of 6"):
            data.mask(offset, n)


def test_without_one_every_token_counts(tmp_path):
    with BinidxWriter(tmp_path / "d") as writer:
        writer.add([1, 2])
    data = open_binidx(tmp_path / "d")
    assert not data.has_mask
    assert data.mask(0, 2).tolist() == [1, 1]
    with pytest.raises(IndexError, match="of 2"):
        data.mask(1, 2)


def test_a_new_pair_without_one_removes_it(prefix):
    with BinidxWriter(prefix) as writer:
        writer.add([1])
    assert not open_binidx(prefix).has_mask


def test_a_failure_leaves_the_old_one(prefix):
    with (
        pytest.raises(ValueError, match="a mask holds 0 and 1"),
        BinidxWriter(prefix, masked=True) as w,
    ):
        w.add([1], [2])
    assert open_binidx(prefix).mask(0, 6).tolist() == [0, 1, 1, 0, 1, 0]
    assert len(list(prefix.parent.iterdir())) == 3


def test_a_new_pair_that_cannot_take_its_place_leaves_the_old_one(prefix, monkeypatch):
    before = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}

    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"), BinidxWriter(prefix) as writer:
        writer.add([1])
    assert {path.name: path.read_bytes() for path in prefix.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("masked", "mask", "message"),
    [
        (True, None, "needs a mask with every document"),
        (False, [1, 1], "needs a mask with every document"),
        (True, [1], r"the mask has the shape \(1,\), not \(2,\)"),
        (True, [0.5, 1], "0 and 1 only"),
        (True, [256, 1], "0 and 1 only"),
    ],
)
def test_a_mask_that_does_not_suit(tmp_path, masked, mask, message):
    with (
        pytest.raises(ValueError, match=message),
        BinidxWriter(tmp_path / "d", masked=masked) as writer,
    ):
        writer.add([1, 2], mask)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=12))
def test_random_damage_is_an_error_or_harmless(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "d"
    with BinidxWriter(path, masked=True) as writer:
        writer.add([1, 2, 3, 4], [0, 1, 1, 0])
    path.with_suffix(".mask").write_bytes(content)
    if len(content) != 4:
        with pytest.raises(DataError, match=f"the mask has {len(content)} bytes for 4 tokens"):
            open_binidx(path)
        return
    data = open_binidx(path)
    assert data.mask(0, 4).tobytes() == content
    if max(content) > 1:
        with pytest.raises(DataError, match="neither 0 nor 1"):
            data.verify()
    else:
        data.verify()


def test_a_mask_that_is_no_file(tmp_path):
    with BinidxWriter(tmp_path / "d") as writer:
        writer.add([1])
    (tmp_path / "d.mask").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        open_binidx(tmp_path / "d")
