"""Token ids are checked before the first step."""

from pathlib import Path

import numpy as np
import pytest

from rwkvkit import BinidxWriter, open_binidx
from rwkvkit.data.binidx import Binidx
from rwkvkit.errors import DataError
from rwkvkit.train import tokens
from rwkvkit.train.tokens import check_tokens


def dataset(folder: Path, ids: np.ndarray, dtype: str) -> Binidx:
    with BinidxWriter(folder / "data", dtype=dtype) as writer:
        writer.add(ids.astype(dtype))
    return open_binidx(folder / "data")


def test_every_block_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BLOCK", 100)
    for place in (0, 99, 100, 1049):
        ids = np.full(1050, 7)
        ids[place] = 70_000
        data = dataset(tmp_path, ids, "int32")
        check_tokens(data, 70_001)
        with pytest.raises(DataError, match="70000 is outside the model's vocabulary of 70000"):
            check_tokens(data, 70_000)


def test_what_cannot_be_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(tmp_path, np.arange(100), "uint16")
    with pytest.raises(DataError, match="token id 99 is outside"):
        check_tokens(data, 99)
    monkeypatch.setattr(Binidx, "tokens", None)
    check_tokens(data, 65536)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_an_id_below_zero(tmp_path: Path, dtype: str) -> None:
    data = dataset(tmp_path, np.array([5, -1, 7]), dtype)
    with pytest.raises(DataError, match="token id -1 is outside"):
        check_tokens(data, 65536)
