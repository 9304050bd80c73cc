"""Files that are hashed while they are written, with and without the kernel's cache."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rwkvkit.data import output
from rwkvkit.data.output import HashedFile

BLOCK = 4096
DIRECT = getattr(os, "O_DIRECT", 0)


def no_direct_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int, mode: int) -> int:
        if flags & DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return real(path, flags, mode)

    monkeypatch.setattr(output.os, "open", refuse)


def no_direct_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def refuse(descriptor: int, data: memoryview) -> int:
        if output.fcntl.fcntl(descriptor, output.fcntl.F_GETFL) & DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return real(descriptor, data)

    monkeypatch.setattr(output.os, "write", refuse)


def short_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(output.os, "write", lambda fd, data: real(fd, data[: BLOCK // 8 * 5]))


@pytest.mark.parametrize("trouble", [None, no_direct_open, no_direct_write, short_writes])
@pytest.mark.parametrize("flush", [1, 1 << 30])
def test_the_bytes_and_their_hash(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[pytest.MonkeyPatch], None] | None,
    flush: int,
) -> None:
    monkeypatch.setattr(output, "_BLOCK", BLOCK)
    monkeypatch.setattr(output, "_LARGE", 3000)
    monkeypatch.setattr(output, "_FLUSH", flush)
    if trouble:
        trouble(monkeypatch)
    generator = np.random.default_rng(0)
    for sizes in ([], [0], [1], [2048], [2047, 1], [2049], [1000, 5000, 7, 4096, 0, 3], [8192] * 3):
        arrays = [generator.integers(0, 65536, size, np.uint16) for size in sizes]
        path = tmp_path / "out"
        path.write_bytes(b"what was there before, and longer" * 9999)
        with HashedFile(path) as file:
            for array in arrays:
                file.write(array)
            digest = file.finish()
        want = b"".join(array.tobytes() for array in arrays)
        assert path.read_bytes() == want
        assert digest == hashlib.sha256(want).hexdigest()


def test_a_full_disk_is_an_error() -> None:
    with HashedFile(Path("/dev/full")) as file:
        file.write(np.zeros(10, np.uint16))
        with pytest.raises(OSError, match="No space left"):
            file.finish()
