"""The World tokenizer: greedy longest match over UTF-8 bytes."""

import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.errors import DataError
from rwkvkit.tokenizer import lanes, vocabulary
from rwkvkit.tokenizer.utf8 import END_BYTE, utf8

_SHORT = 2048  # bytes; longer texts are walked in several lanes at once
_MOST_ROOM = 8 << 20  # ids


class WorldTokenizer:
    """Encode text to the ids of the World vocabulary and back.

    Every text can be encoded, since each single byte is a token. Id 0 is in no encoding: it ends
    documents. Encoding releases the GIL, and an instance can be shared between threads.

    Attributes:
        vocab_size: 65536, the number of ids models have; a few of the last are not tokens.
        max_id: the largest id that is a token, 65529 in the World vocabulary.
        fingerprint: SHA-256 of the mapping from id to bytes, hexadecimal.
        end_id: 0, the id that ends documents.
        dtype: uint16, what ids fit in.

    Args:
        vocab_path: a vocabulary file with lines of ``id literal length``; by default
            ``rwkv_vocab_v20230424.txt`` of the installed package ``rwkv``.

    Raises:
        SetupError: no ``vocab_path`` and the package ``rwkv`` is not installed.
        DataError: the file is not a usable vocabulary.
    """

    vocab_size = 65536
    end_id = 0
    dtype: np.dtype[Any] = np.dtype(np.uint16)

    def __init__(self, vocab_path: str | PathLike[str] | None = None) -> None:
        path = Path(vocab_path) if vocab_path is not None else vocabulary.find()
        self._vocabulary = vocabulary.load(path)
        self.fingerprint = self._vocabulary.fingerprint
        self._thread = threading.local()
        self.max_id = int(np.flatnonzero(self._vocabulary.sizes)[-1])

    def encode(self, text: str) -> NDArray[np.uint16]:
        """Return the ids of ``text``, uint16 [tokens].

        Raises:
            DataError: the text holds a lone surrogate, which UTF-8 cannot express.
        """
        return self.encode_joined(utf8(text))

    def encode_batch(self, texts: Iterable[str]) -> list[NDArray[np.uint16]]:
        """Return the ids of each text; faster than one by one.

        Raises:
            DataError: as in ``encode``.
        """
        tokens = self.encode_joined(b"".join([utf8(text) + END_BYTE for text in texts]))
        stops = np.flatnonzero(tokens == 0).tolist()
        starts = [0, *[stop + 1 for stop in stops]]
        return [tokens[start:stop] for start, stop in zip(starts, stops, strict=False)]

    def encode_joined(self, buffer: bytes | NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Encode many documents at once, each followed by the byte 0xFF, which becomes id 0.

        This is the fast way to encode a corpus: no Python object per document, the lengths fall
        out of the positions of the zeros.

        Args:
            buffer: UTF-8 documents, uint8 if an array, each ended by ``END_BYTE``. That they are
                valid UTF-8 is the caller's to ensure: a stray 0xFF would end a document.

        Returns:
            uint16 [tokens]: the ids of each document, each followed by 0.
        """
        text = np.frombuffer(buffer, np.uint8)
        out = self._room(len(text))
        tables = self._vocabulary.tables
        if len(text) < _SHORT:
            count = lanes.encode_short(text, tables.slots, tables.roots, out)
        else:
            count = lanes.encode_long(text, *tables, out)
        return out[:count].copy()

    def encode_segments(
        self, buffer: bytes | NDArray[np.uint8]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Do what ``encode_joined`` does, and return the tokens in each document too, 0 included.

        Returns:
            uint16 [tokens] and int64 [documents].
        """
        tokens = self.encode_joined(buffer)
        return tokens, np.diff(np.flatnonzero(tokens == 0), prepend=-1)

    @cached_property
    def token_bytes(self) -> NDArray[np.uint8]:
        """Bytes in each token by id, uint8 [65536]; 0 where there is no token."""
        return self._vocabulary.sizes.astype(np.uint8)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Ids that are no token (0 and the few after the last) decode to nothing.

        Raises:
            DataError: an id is outside 0..65535.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | NDArray[np.integer]) -> bytes:
        """Return the bytes of ``ids``, as they are; see ``decode``."""
        array = np.asarray(ids, dtype=np.int64) if len(ids) else np.empty(0, np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.vocab_size:
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise DataError(
                f"token id {wrong} is not in 0..{self.vocab_size - 1}",
                hint="the ids may belong to another vocabulary",
            )
        tokens = self._tokens
        return b"".join([tokens[i] for i in array.tolist()])

    @cached_property
    def _tokens(self) -> list[bytes]:
        text, sizes = self._vocabulary.text, self._vocabulary.sizes
        stops = np.cumsum(sizes).tolist()
        starts = [0, *stops[:-1]]
        return [text[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def _room(self, size: int) -> NDArray[np.uint16]:
        """Return an array to write ids to; a thread uses the same one again, up to a size."""
        if size > _MOST_ROOM:
            return np.empty(size, np.uint16)
        room: NDArray[np.uint16] | None = getattr(self._thread, "room", None)
        if room is None or len(room) < size:
            # Memory that is new to a process costs as much time as encoding into it.
            room = self._thread.room = np.empty(min(2 * size, _MOST_ROOM), np.uint16)
        return room
