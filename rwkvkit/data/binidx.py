"""The binidx pair, byte by byte: a flat token file ``.bin`` and its index ``.idx``.

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

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rwkvkit import files
from rwkvkit.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 7: "<f8", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_MAX_SIZE = 2**31 - 1
_BLOCK = 1 << 20  # entries handled at a time


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
    return path.with_name(name + suffix)


class BinidxWriter:
    """Write documents to a new pair; its files appear when the ``with`` block ends well.

    If the block fails nothing is left, and an existing pair stays as it was. The mask of a pair
    that is replaced goes unless there is a new one. Memory use does not depend on the size.

    Attributes:
        n_tokens: tokens written so far.
        n_documents: documents written so far.
        bin_sha256: SHA-256 of the token file; set when the block has ended.
        idx_sha256: SHA-256 of the index file; set when the block has ended.
        mask_sha256: SHA-256 of the mask file; set when the block has ended, if there is a mask.

    Args:
        prefix: where to write: ``prefix.bin`` and ``prefix.idx``.
        dtype: type of the stored tokens: uint16 for vocabularies up to 65,536, else int32.
        masked: also write ``prefix.mask``; every document then comes with its mask.

    Raises:
        DataError: a dtype that the format has no code for, or tokens that do not fit it.
        OSError: the files cannot be written.
    """

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        dtype: DTypeLike = np.uint16,
        *,
        masked: bool = False,
    ) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if self.dtype not in _CODES:
            raise DataError(
                f"binidx has no code for tokens of type {self.dtype}",
                where=str(prefix),
                hint="use uint16 or int32",
            )
        self._prefix = prefix
        self._masked = masked
        self._digest = hashlib.sha256()
        self._mask_digest = hashlib.sha256()
        self._stack = ExitStack()
        self.n_tokens = 0
        self.n_documents = 0
        self.bin_sha256 = ""
        self.idx_sha256 = ""
        self.mask_sha256 = ""

    def __enter__(self) -> "BinidxWriter":
        with ExitStack() as stack:
            index = stack.enter_context(files.replacing(idx_path(self._prefix)))
            tokens = stack.enter_context(files.replacing(bin_path(self._prefix)))
            self._index: BinaryIO = stack.enter_context(index.open("w+b"))
            self._index.write(bytes(_HEADER.size))
            self._tokens: BinaryIO = stack.enter_context(tokens.open("wb"))
            if self._masked:
                mask = stack.enter_context(files.replacing(mask_path(self._prefix)))
                self._mask: BinaryIO = stack.enter_context(mask.open("wb"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack as stack:
            if error is not None:
                # The files' own contexts must see the error, or they would be put in place.
                stack.__exit__(kind, error, trace)
                return
            self._write_index()
            self.bin_sha256 = self._digest.hexdigest()
            if self._masked:
                self.mask_sha256 = self._mask_digest.hexdigest()
            else:
                mask_path(self._prefix).unlink(missing_ok=True)

    def add(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> None:
        """Append one document (an integer array or list, [tokens]); see ``add_many``."""
        array = np.asarray(tokens)
        self.add_many(array, np.array([array.size]), mask)

    def add_many(self, tokens: ArrayLike, sizes: ArrayLike, mask: ArrayLike | None = None) -> None:
        """Append documents that stand one after another.

        Args:
            tokens: the tokens of all of them, [total].
            sizes: tokens in each, [documents]; they sum up to ``total``.
            mask: 0 or 1 for each token, [total]; only where the writer is ``masked``.

        Raises:
            DataError: a token does not fit the dtype, or a document is too long.
            ValueError: sizes or mask do not suit the tokens.
        """
        stored = self._checked(np.asarray(tokens))
        counts = np.asarray(sizes, np.int64)
        if counts.size and not 0 <= counts.min() <= counts.max() <= _MAX_SIZE:
            raise DataError(
                f"a document has {counts.max()} tokens; the index holds sizes up to {_MAX_SIZE}",
                where=str(self._prefix),
                hint="split it",
            )
        if counts.sum() != stored.size:
            raise ValueError(f"sizes sum up to {counts.sum()}, but there are {stored.size} tokens")
        if (mask is not None) != self._masked:
            raise ValueError("a masked writer needs a mask with every document, and only that one")
        if mask is not None:
            self._add_mask(np.asarray(mask), stored.size)
        data = stored.data.cast("B") if stored.size else b""
        self._tokens.write(data)
        self._digest.update(data)
        self._index.write(counts.astype("<i4").tobytes())
        self.n_tokens += stored.size
        self.n_documents += counts.size

    def _add_mask(self, mask: NDArray[Any], n_tokens: int) -> None:
        if mask.shape != (n_tokens,):
            raise ValueError(f"the mask has the shape {mask.shape}, not ({n_tokens},)")
        stored = np.ascontiguousarray(mask, np.uint8)
        if stored.size and (stored.max() > 1 or (stored != mask).any()):
            raise ValueError("a mask holds 0 and 1 only")
        self._mask.write(stored.data)
        self._mask_digest.update(stored.data)

    def _checked(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """Return the tokens in the stored type, refusing values that would change in it."""
        if tokens.ndim != 1:
            raise ValueError(f"tokens have one axis, not shape {tokens.shape}")
        if tokens.dtype == self.dtype:
            return np.ascontiguousarray(tokens)
        stored = tokens.astype(self.dtype)
        changed = np.flatnonzero(stored != tokens)
        if changed.size:
            raise DataError(
                f"token {tokens[changed[0]]} does not fit the type {self.dtype.name}",
                where=str(self._prefix),
                hint="choose a wider dtype for this vocabulary",
            )
        return stored

    def _write_index(self) -> None:
        """Put the header before the sizes, which are written already, and the rest after them."""
        index, count, digest = self._index, self.n_documents, hashlib.sha256()
        end = index.tell()

        def write(data: bytes) -> None:
            index.write(data)
            digest.update(data)

        index.seek(0)
        write(_HEADER.pack(_MAGIC, _VERSION, _CODES[self.dtype], count, count + 1))
        for _ in range(0, count, _BLOCK):
            digest.update(index.read(min(4 * _BLOCK, end - index.tell())))
        start = 0
        for first in range(0, count, _BLOCK):
            index.seek(_HEADER.size + 4 * first)
            sizes = np.frombuffer(index.read(min(4 * _BLOCK, end - index.tell())), "<i4")
            stops = start + np.cumsum(sizes, dtype=np.int64)
            index.seek(end + 8 * first)
            write(((stops - sizes) * self.dtype.itemsize).astype("<i8").tobytes())
            start = int(stops[-1])
        for first in range(0, count + 1, _BLOCK):
            write(np.arange(first, min(first + _BLOCK, count + 1), dtype="<i8").tobytes())
        self.idx_sha256 = digest.hexdigest()


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
        ends = np.cumsum([_HEADER.size, 4 * count, 8 * count, 8 * entries], dtype=object)
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
        for first in range(0, len(self), _BLOCK):
            sizes = self.sizes[first : first + _BLOCK]
            stops = start + np.cumsum(sizes, dtype=np.int64)
            wrong = np.flatnonzero(
                (sizes < 0)
                | (self._offsets[first : first + _BLOCK] != (stops - sizes) * self.dtype.itemsize)
            )
            if wrong.size:
                raise DataError(
                    f"document {first + wrong[0]}: its size or offset is wrong",
                    where=f"{self.prefix}.idx",
                    hint="the index is damaged: build it again",
                )
            start = int(stops[-1])
        for first in range(0, len(self) + 1, _BLOCK):
            entries = self._documents[first : first + _BLOCK]
            if not np.array_equal(entries, np.arange(first, first + len(entries))):
                raise DataError(
                    "the document entries are not 0, 1, 2 ...", where=f"{self.prefix}.idx"
                )
        for first in range(0, len(self._mask), _BLOCK):
            wrong = np.flatnonzero(self._mask[first : first + _BLOCK] > 1)
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
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _read_header(index: NDArray[np.uint8], path: Path) -> tuple[np.dtype[Any], int, int]:
    where = str(path)
    if len(index) < _HEADER.size or index[: len(_MAGIC)].tobytes() != _MAGIC:
        raise DataError("not a binidx index: it does not start with MMIDIDX", where=where)
    _, version, code, count, entries = _HEADER.unpack(index[: _HEADER.size].tobytes())
    if version != _VERSION:
        raise DataError(f"binidx version {version} is not known, only {_VERSION}", where=where)
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
