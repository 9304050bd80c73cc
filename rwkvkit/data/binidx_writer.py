"""Write a binidx pair; its layout is in ``rwkvkit.data.binidx``."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rwkvkit import files
from rwkvkit.data.binidx import BLOCK, CODES, HEADER, MAGIC, VERSION, bin_path, idx_path, mask_path
from rwkvkit.data.output import HashedFile
from rwkvkit.errors import DataError

_MAX_SIZE = 2**31 - 1


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
        if self.dtype not in CODES:
            raise DataError(
                f"binidx has no code for tokens of type {self.dtype}",
                where=str(prefix),
                hint="use uint16 or int32",
            )
        self._prefix = prefix
        self._masked = masked
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
            self._index = stack.enter_context(HashedFile(index))
            self._sizes = stack.enter_context(tempfile.TemporaryFile(dir=index.parent))
            self._tokens = stack.enter_context(HashedFile(tokens))
            if self._masked:
                mask = stack.enter_context(files.replacing(mask_path(self._prefix)))
                self._mask = stack.enter_context(HashedFile(mask))
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
            self.idx_sha256 = self._index.finish()
            self.bin_sha256 = self._tokens.finish()
            if self._masked:
                self.mask_sha256 = self._mask.finish()
        if not self._masked:
            # Last: the old pair keeps its mask until the new one is in place, and where a kill
            # leaves that mask beside the new one, its length tells.
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
        if counts.size and counts.min() < 0:
            raise ValueError(f"a size is negative: {counts.min()}")
        if counts.size and counts.max() > _MAX_SIZE:
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
        self._tokens.write(stored)
        self._sizes.write(counts.astype("<i4").tobytes())
        self.n_tokens += stored.size
        self.n_documents += counts.size

    def _add_mask(self, mask: NDArray[Any], n_tokens: int) -> None:
        if mask.shape != (n_tokens,):
            raise ValueError(f"the mask has the shape {mask.shape}, not ({n_tokens},)")
        stored = np.ascontiguousarray(mask, np.uint8)
        if stored.size and (stored.max() > 1 or (stored != mask).any()):
            raise ValueError("a mask holds 0 and 1 only")
        self._mask.write(stored)

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
        """Write the index, which begins with the number of documents, from their sizes."""
        index, count = self._index, self.n_documents
        header = HEADER.pack(MAGIC, VERSION, CODES[self.dtype], count, count + 1)
        index.write(np.frombuffer(header, np.uint8))
        for sizes in self._stored_sizes():
            index.write(sizes)
        start = 0
        for sizes in self._stored_sizes():
            stops = start + np.cumsum(sizes, dtype=np.int64)
            index.write(((stops - sizes) * self.dtype.itemsize).astype("<i8", copy=False))
            start = int(stops[-1])
        for first in range(0, count + 1, BLOCK):
            index.write(np.arange(first, min(first + BLOCK, count + 1), dtype="<i8"))

    def _stored_sizes(self) -> Iterator[NDArray[np.int32]]:
        """Yield the sizes of all documents, many at a time."""
        self._sizes.seek(0)
        while data := self._sizes.read(4 * BLOCK):
            yield np.frombuffer(data, "<i4")
