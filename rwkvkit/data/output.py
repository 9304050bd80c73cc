"""A large file that is written once, from its first byte to its last."""

import errno
import fcntl
import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4 << 20
_BLOCKS = 3  # one is filled while others are on their way
_LARGE = 1 << 20  # bytes that are worth a thread
_FLUSH = 64 << 20  # bytes after which the disk is set to work


class HashedFile:
    """A new file that is hashed while it is written, and is on its way to the disk all the time.

    Blocks go to the disk past the kernel's cache, where the file system takes that: they have to be
    stored in the end, and copying them into fresh pages of the cache can take more of a processor
    than anything else. Elsewhere the cache is flushed little by little, so that the disk does not
    stand idle until the end.

    Args:
        path: the file; what it held is lost.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor, self._direct = _opened(path)
        # Direct writes want memory that begins with a page.
        self._blocks: deque[NDArray[np.uint8]] = deque(
            np.frombuffer(mmap.mmap(-1, _BLOCK), np.uint8) for _ in range(_BLOCKS)
        )
        self._held = 0  # bytes in the first of them
        self._digest = hashlib.sha256()
        self._threads = ThreadPoolExecutor(2)
        self._writer = ThreadPoolExecutor(1)
        self._writes: deque[Future[None]] = deque()
        self._flush: Future[None] | None = None
        self._unflushed = 0

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        self._threads.shutdown()
        os.close(self._descriptor)

    def write(self, data: NDArray[Any]) -> None:
        """Append the bytes of an array; an error may be that of an earlier call."""
        left = np.frombuffer(data, np.uint8) if data.size else np.empty(0, np.uint8)
        hashed = None
        if left.size >= _LARGE:
            hashed = self._threads.submit(self._digest.update, left.data)
        else:
            self._digest.update(left.data)
        while left.size:
            count = min(left.size, _BLOCK - self._held)
            self._blocks[0][self._held : self._held + count] = left[:count]
            self._held += count
            left = left[count:]
            if self._held == _BLOCK:
                self._send()
        if hashed:
            hashed.result()

    def finish(self) -> str:
        """Write what is left; return the hash of all that was written."""
        while self._writes:
            self._writes.popleft().result()
        self._leave_direct()
        self._put(self._blocks[0][: self._held].data)
        if self._flush:
            self._flush.result()
        return self._digest.hexdigest()

    def _send(self) -> None:
        """Have the first block written, and go on with the one that was sent the longest ago."""
        self._writes.append(self._writer.submit(self._put, self._blocks[0].data))
        self._blocks.rotate(-1)
        self._held = 0
        if len(self._writes) == _BLOCKS:
            self._writes.popleft().result()

    def _put(self, left: memoryview) -> None:
        """Write bytes behind those before; one call at a time."""
        self._unflushed += len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                # Some file systems take the flag and refuse here; so does any, after half a block.
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._leave_direct()
        if self._direct or self._unflushed < _FLUSH:
            return
        if self._flush is None or self._flush.done():
            if self._flush:
                self._flush.result()
            self._flush = self._threads.submit(os.fsync, self._descriptor)
            self._unflushed = 0

    def _leave_direct(self) -> None:
        """Write through the cache from here on: the last bytes fill no block."""
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            self._direct = False


def _opened(path: Path) -> tuple[int, bool]:
    """Open a file to be written anew; return its descriptor, and whether writes are direct."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if direct := getattr(os, "O_DIRECT", 0):
        try:
            return os.open(path, flags | direct, 0o666), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666), False
