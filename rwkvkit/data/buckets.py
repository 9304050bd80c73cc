"""Records too many for memory, cut by the top bits of their keys into buckets that fit."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = 4096  # buckets

KEY = "key"


def bucket_count(n_bytes: int, memory: int) -> int:
    """Return how many buckets it takes for one of them to fit into ``memory``; a power of two."""
    count = 1
    while count < _MOST and n_bytes > count * memory:
        count *= 2
    return count


def grouped(numbers: NDArray[Any], order: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return each number that occurs with where it does, for an ``order`` that sorts numbers."""
    found, firsts = np.unique(numbers[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, firsts)[1:], strict=True))


class Buckets:
    """Records by the top bits of their field ``key``; in files, or in memory if it is one bucket.

    The records of a bucket keep the order in which they were added. So sorting one bucket after
    another, with a stable sort, sorts everything.

    Attributes:
        count: number of buckets, a power of two.

    Args:
        folder: where to write; created, and must be empty.
        count: number of buckets.
        dtype: of the records, with a field ``key`` of type uint64.

    Raises:
        OSError: the files cannot be written.
    """

    def __init__(self, folder: Path, count: int, dtype: np.dtype[Any]) -> None:
        self.count = count
        self._folder = folder
        self._bits = count.bit_length() - 1
        self._dtype = dtype
        self._held: list[NDArray[Any]] = []
        if count > 1:
            folder.mkdir()

    def add(self, records: NDArray[Any]) -> list[tuple[int, NDArray[np.int64]]]:
        """Append records; return for each bucket that got some, which, in the order it has them."""
        if self.count == 1:
            self._held.append(records)
            return [(0, np.arange(len(records)))]
        numbers = (records[KEY] >> np.uint64(64 - self._bits)).astype(np.uint16)
        order = np.argsort(numbers, kind="stable")
        each = grouped(numbers, order)
        for number, own in each:
            self.append(number, "records", records[own])
        return each

    def take(self, number: int) -> NDArray[Any]:
        """Return the records of a bucket and forget them."""
        if self.count == 1:
            held, self._held = self._held, []
            return np.concatenate([np.empty(0, self._dtype), *held])
        return self.take_file(number, "records", self._dtype)

    def append(self, number: int, name: str, data: NDArray[Any]) -> None:
        """Append data of another kind to a bucket, which must be in files."""
        with (self._folder / f"{number}.{name}").open("ab") as file:
            data.tofile(file)

    def take_file(self, number: int, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return what was appended to a bucket under ``name`` and remove it."""
        path = self._folder / f"{number}.{name}"
        if not path.exists():
            return np.empty(0, dtype)
        data = np.fromfile(path, dtype)
        path.unlink()
        return data

    def close(self) -> None:
        """Remove the folder; every bucket has been taken."""
        if self.count > 1:
            self._folder.rmdir()
