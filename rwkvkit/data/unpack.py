"""Decompress streams in pieces of bounded size: a few bytes may stand for gigabytes."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from rwkvkit.data.inputs import Compression

_READ = 128 << 10
_PIECE = 1 << 20
_WINDOW = 1 << 31  # of zstd, the longest there is (`--long=31`); 128 MiB unless it is told
_END = b"end of stream"
_END_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_END)


def decompressed(
    raw: BinaryIO, compression: Compression, seen: Callable[[bytes], object] = bytes
) -> Iterator[bytes]:
    """Yield the content of a compressed stream, in pieces of 1 MiB at most.

    ``seen`` is called with every block read.

    Raises:
        EOFError: the stream ends inside the compressed data.
        zlib.error, zstandard.ZstdError: it is damaged.
    """
    return (_gunzipped if compression == "gzip" else _unzstd)(raw, seen)


def _gunzipped(raw: BinaryIO, seen: Callable[[bytes], object]) -> Iterator[bytes]:
    decoder: Any = None
    while block := raw.read(_READ):
        seen(block)
        while block:
            if decoder is None:  # a file may be several streams, one after another
                block = block.lstrip(b"\0")  # padding
                decoder = zlib.decompressobj(wbits=31) if block else None
                continue
            piece = decoder.decompress(block, _PIECE)
            while len(piece) == _PIECE:
                yield piece
                piece = decoder.decompress(decoder.unconsumed_tail, _PIECE)
            yield piece
            block = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = None
    if decoder is not None:
        raise EOFError("the file ends too early")


def _unzstd(raw: BinaryIO, seen: Callable[[bytes], object]) -> Iterator[bytes]:
    """Decompress with a reader that limits its pieces, and is silent about a stream cut off.

    So a frame is put behind the stream. Where the last frame of the stream is not whole, what
    would be its rest is taken for it, and the content does not end with that of the added one.
    """
    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    source: Any = _Followed(raw, seen)
    reader = unpacker.stream_reader(source, read_across_frames=True)
    held = b""
    while piece := reader.read(_PIECE - len(_END)):
        held += piece
        yield held[: -len(_END)]
        held = held[-len(_END) :]
    if held != _END:
        raise EOFError("the file ends too early")


class _Followed:
    """A stream with one more frame behind it, whose content is ``_END``.

    Its last block and the frame come as one: a frame header that is cut off in a block of its own
    is passed over without a word.
    """

    def __init__(self, raw: BinaryIO, seen: Callable[[bytes], object]) -> None:
        self._raw = raw
        self._seen = seen
        self._next = raw.read(_READ)
        self._ended = False

    def read(self, _: int) -> bytes:
        """Return the next block, whatever its size, or nothing at the end."""
        if self._ended:
            return b""
        block = self._next
        self._seen(block)
        self._next = self._raw.read(_READ)
        self._ended = not self._next
        return block + _END_FRAME if self._ended else block
