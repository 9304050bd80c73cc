"""How much of a file on another machine is fetched to read it."""

import fsspec
import pytest
from chunk_cases import chunks
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from rwkvkit.data.finding import find_files
from rwkvkit.data.sources import Source

DATA = b"\n".join(b'{"text": "%s"}' % (b"x" * (i * 37 % 900)) for i in range(3000))
FETCHED: list[tuple[int, int]] = []


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        FETCHED.append((start, end))
        return DATA[start:end]


class CountedSystem(AbstractFileSystem):
    """One file, fetched in blocks of 64 KiB."""

    protocol = "counted"

    def info(self, path, **_):
        return {"name": path, "size": len(DATA), "type": "file"}

    def _open(self, path, mode="rb", **_):
        return CountedFile(self, path, mode, 64 << 10, size=len(DATA))


@pytest.fixture(autouse=True)
def counted():
    fsspec.register_implementation("counted", CountedSystem, clobber=True)
    FETCHED.clear()


@pytest.mark.parametrize("task_bytes", [400_000, None])
def test_lines_are_fetched_once(task_bytes):
    found = chunks(find_files([Source(path="counted://a.jsonl")]), 100_000, task_bytes)
    assert b"".join(chunk.data for chunk in found) == DATA
    assert all(len(chunk.data) <= 101_000 for chunk in found)
    n_tasks = -(-len(DATA) // task_bytes) if task_bytes else 1
    ahead = (128 + 64) << 10  # of a task's end: what is read to find its last line, and a block
    assert sum(end - start for start, end in FETCHED) <= len(DATA) + n_tasks * ahead
