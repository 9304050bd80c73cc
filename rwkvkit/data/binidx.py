"""The binidx pair, byte by byte, and its reader: a flat token file ``.bin`` and its index ``.idx``.

Layout of the index, little endian::

    9 bytes  magic  MMIDIDX 00 00
    8        version, uint64, 1
    1        dtype code of the tokens in .bin
    8        S, number of documents, uint64
    8        E = S + 1, uint64
    4 S      size of each document in tokens, int32
    8 S      byte offset of each document in .bin, int64
    8 E      0 .. S, int64

Beside the pair may lie a loss mask, ``.mask``, of which other tools know nothing: one byte for each
token in ``.bin``, 1 where the token counts in the loss when it is the one to be predicted, else 0.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit import files
from rwkvkit.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 7: "<f8", 8: "<u2"}
CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
BLOCK = 1 << 20  # entries handled at a time


def bin_path(prefix: str | os.PathLike[str]) -> Path:
    """Return the token file of a prefix, which may carry ``.bin`` or ``.idx`` already."""
    return _with_suffix(prefix, ".bin")


def idx_path(prefix: str | os.PathLike[str]) -> Path:
    """Return the index file of a prefix, which may carry ``.bin`` or ``.idx`` already."""
    return _with_suffix(prefix, ".idx")


def mask_path(prefix: str | os.PathLike[str]) -> Path:
    """Return the mask file of a prefix, which may carry ``.bin`` or ``.idx`` already."""
    return _with_suffix(prefix, ".mask")


def _with_suffix(prefix: str | os.PathLike[str], suffix: str) -> Path:
    path = Path(prefix)
    name = path.name[:-4] if path.suffix in (".bin", ".idx") else path.name
    return path.parent / (name + suffix)  # "." and "/" have no name, which with_name() wants


class Binidx:
    """A memory-mapped pair, read only: ``len(data)`` documents, ``data[i]`` one of them.

    Attributes:
        prefix: the path without suffix.
        dtype: type of the stored tokens.
        sizes: tokens in each document, int32 [documents].
        n_tokens: tokens in all.
        has_mask: whether a loss mask lies beside the pair.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        index_path, tokens_path = idx_path(prefix), bin_path(prefix)
        self.prefix = str(index_path)[: -len(".idx")]
        index = _mapped(index_path)
        self.dtype, count, entries = _read_header(index, index_path)
        ends = np.cumsum([HEADER.size, 4 * count, 8 * count, 8 * entries], dtype=object)
        if ends[-1] != len(index):
            raise DataError(
                f"the index has {len(index)} bytes, but {count} documents need {ends[-1]}",
                where=str(index_path),
                hint="the file was cut off or is damaged: build it again",
            )
        self.sizes: NDArray[np.int32] = index[ends[0] : ends[1]].view("<i4")
        self._offsets: NDArray[np.int64] = index[ends[1] : ends[2]].view("<i8")
        self._documents: NDArray[np.int64] = index[ends[2] :].view("<i8")
        data = _mapped(tokens_path)
        if len(data) % self.dtype.itemsize:
            raise DataError(
                f"{len(data)} bytes are no whole number of {self.dtype.name} tokens",
                where=str(tokens_path),
            )
        self._tokens = data.view(self.dtype)
        self.n_tokens = len(self._tokens)
        indexed = int(self.sizes.sum(dtype=np.int64))
        if indexed != self.n_tokens:
            raise DataError(
                f"the index counts {indexed} tokens, the data holds {self.n_tokens}",
                where=self.prefix,
                hint="the two files do not belong together, or one was cut off: build them again",
            )
        self.has_mask = mask_path(prefix).exists()
        self._mask = _mapped(mask_path(prefix)) if self.has_mask else np.empty(0, np.uint8)
        if self.has_mask and len(self._mask) != self.n_tokens:
            raise DataError(
                f"the mask has {len(self._mask)} bytes for {self.n_tokens} tokens",
                where=str(mask_path(prefix)),
                hint="it belongs to other data, or was cut off: build them again",
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> NDArray[Any]:
        """Return document ``i``; negative numbers count from the end.

        Raises:
            IndexError: there is no such document.
            DataError: the index points outside the data.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        size, offset = int(self.sizes[i]), int(self._offsets[i])
        start, odd = divmod(offset, self.dtype.itemsize)
        if size < 0 or offset < 0 or odd or start + size > self.n_tokens:
            raise DataError(
                f"document {i} ({size} tokens at byte {offset}) lies outside the data",
                where=f"{self.prefix}.idx",
                hint="the index is damaged: build it again",
            )
        return self._tokens[start : start + size]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def tokens(self, offset: int, n: int) -> NDArray[Any]:
        """Return ``n`` tokens from ``offset`` (in tokens), across the borders of documents.

        Raises:
            IndexError: the range is not inside the data.
        """
        if offset < 0 or n < 0 or offset + n > self.n_tokens:
            raise IndexError(f"tokens {offset}..{offset + n} of {self.n_tokens}")
        return self._tokens[offset : offset + n]

    def mask(self, offset: int, n: int) -> NDArray[np.uint8]:
        """Return which of ``n`` tokens from ``offset`` count in the loss, uint8 [n] of 0 and 1.

        An entry belongs to the token in the same place, as the one to be predicted: next to
        ``tokens(offset, n + 1)``, whose targets are ``tokens[1:]``, stands ``mask(offset + 1, n)``.
        Without a mask every token counts.

        Raises:
            IndexError: the range is not inside the data.
        """
        if offset < 0 or n < 0 or offset + n > self.n_tokens:
            raise IndexError(f"tokens {offset}..{offset + n} of {self.n_tokens}")
        return self._mask[offset : offset + n] if self.has_mask else np.ones(n, np.uint8)

    def verify(self) -> None:
        """Check the whole index against the data.

        Raises:
            DataError: a negative size, offsets that are not the running sum of the sizes,
                document entries that are not 0, 1, 2 ..., or a mask that is not all 0 and 1.
        """
        start = 0
        for first in range(0, len(self), BLOCK):
            sizes = self.sizes[first : first + BLOCK]
            stops = start + np.cumsum(sizes, dtype=np.int64)
            wrong = np.flatnonzero(
                (sizes < 0)
                | (self._offsets[first : first + BLOCK] != (stops - sizes) * self.dtype.itemsize)
            )
            if wrong.size:
                raise DataError(
                    f"document {first + wrong[0]}: its size or offset is wrong",
                    where=f"{self.prefix}.idx",
                    hint="the index is damaged: build it again",
                )
            start = int(stops[-1])
        for first in range(0, len(self) + 1, BLOCK):
            entries = self._documents[first : first + BLOCK]
            if not np.array_equal(entries, np.arange(first, first + len(entries))):
                raise DataError(
                    "the document entries are not 0, 1, 2 ...", where=f"{self.prefix}.idx"
                )
        for first in range(0, len(self._mask), BLOCK):
            wrong = np.flatnonzero(self._mask[first : first + BLOCK] > 1)
            if wrong.size:
                raise DataError(
                    f"the mask at token {first + wrong[0]} is neither 0 nor 1",
                    where=f"{self.prefix}.mask",
                    hint="the mask is damaged: build it again",
                )


def open_binidx(prefix: str | os.PathLike[str]) -> Binidx:
    """Open a binidx pair for reading.

    Args:
        prefix: path of the pair, with or without ``.bin`` or ``.idx``.

    Raises:
        DataError: a file is missing or unreadable, is no binidx, or the two do not fit together.
    """
    return Binidx(prefix)


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path), hint="a binidx is two files") from error
    except OSError as error:
        raise files.unreadable(path, error) from error


def _read_header(index: NDArray[np.uint8], path: Path) -> tuple[np.dtype[Any], int, int]:
    where = str(path)
    if len(index) < HEADER.size or index[: len(MAGIC)].tobytes() != MAGIC:
        raise DataError("not a binidx index: it does not start with MMIDIDX", where=where)
    _, version, code, count, entries = HEADER.unpack(index[: HEADER.size].tobytes())
    if version != VERSION:
        raise DataError(f"binidx version {version} is not known, only {VERSION}", where=where)
    if code not in _DTYPES:
        raise DataError(
            f"dtype code {code} is not readable",
            where=where,
            hint="code 6 means float32 or float64, depending on the writer" if code == 6 else None,
        )
    if entries != count + 1:
        raise DataError(
            f"{count} documents need {count + 1} entries, the index says {entries}", where=where
        )
    return np.dtype(_DTYPES[code]), count, entries
