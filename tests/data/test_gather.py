import ctypes
import resource
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rwkvkit.data import gather as gathering
from rwkvkit.data.blocks import Block
from rwkvkit.data.gather import Gatherer, Reader, pick
from rwkvkit.data.parts import MASK, TOKENS

GAP, RUN, WINDOW = gathering._GAP, gathering._RUN, gathering._WINDOW


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


class Stored:
    """Documents of many sizes in three parts on disk."""

    def __init__(self, folder, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sizes = [1, 2, 50, 300, GAP // 2, GAP, GAP + 1, RUN // 2, RUN]
        self.sizes = rng.choice(sizes, 150, p=[0.2, 0.2, 0.2, 0.2, 0.06, 0.06, 0.06, 0.01, 0.01])
        self.places = np.cumsum(self.sizes) - self.sizes
        total = int(self.sizes.sum())
        self.tokens = rng.integers(0, 65536, total, dtype=np.uint16)
        self.mask = rng.integers(0, 2, total, dtype=np.uint8)
        self.bases = np.array([0, self.places[50], self.places[100], total])
        parts = []
        for number, (start, stop) in enumerate(zip(self.bases, self.bases[1:], strict=False)):
            files = {TOKENS: self.tokens[start:stop], MASK: self.mask[start:stop]}
            for suffix, data in files.items():
                data.tofile(folder / f"{number}.{suffix}")
            path = partial(lambda number, suffix: folder / f"{number}.{suffix}", number)
            parts.append(SimpleNamespace(path=path))
        self.corpus = SimpleNamespace(bases=self.bases, dtype=np.dtype(np.uint16), parts=parts)

    def block(self, which: np.ndarray) -> Block:
        """Documents that stand in that order in the output, listed in another."""
        sizes = self.sizes[which].astype(np.int32)
        listed = np.random.default_rng(1).permutation(len(which))
        targets = np.cumsum(sizes, dtype=np.int64) - sizes
        return Block(self.places[which][listed], sizes[listed], targets[listed], sizes)

    def expected(self, data: np.ndarray, which: np.ndarray) -> np.ndarray:
        pieces = [data[self.places[i] : self.places[i] + self.sizes[i]] for i in which]
        return np.concatenate([data[:0], *pieces])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("most_open", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_any_documents_in_any_order(tmp_path, seed, threads, most_open, monkeypatch):
    monkeypatch.setattr(gathering, "_FOR_A_THREAD", 1000)
    monkeypatch.setattr(gathering, "_most_open", lambda _: most_open)
    before = open_files()
    stored = Stored(tmp_path, seed)
    rng = np.random.default_rng(seed)
    picked = partial(pick, stored.tokens)
    gatherer = Gatherer(threads)
    tokens, mask = Reader(stored.corpus, TOKENS), Reader(stored.corpus, MASK)
    # All in order, all out of order, a few, some of them twice, one, none.
    for which in (
        np.arange(150),
        rng.permutation(150),
        rng.permutation(150)[:20],
        rng.integers(0, 150, 200),
        np.array([7]),
        np.arange(0),
    ):
        for read, data in (
            (tokens.read, stored.tokens),
            (mask.read, stored.mask),
            (picked, stored.tokens),
        ):
            expected = stored.expected(data, which)
            room = np.full(len(expected) + 2, 7, data.dtype)
            gatherer.gather(read, stored.block(which), room[1:-1])
            assert np.array_equal(room[1:-1], expected)
            assert room[0] == room[-1] == 7
    assert open_files() == before + 2 * most_open
    gatherer.close()
    tokens.close()
    mask.close()
    assert open_files() == before


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "kept", "raised"),
    [
        (1024, 4096, 100, 384, None),
        (1024, 4096, 500, 500, 1256),
        (1024, 2000, 5000, 872, 2000),
        (1024, -1, 5000, 5000, 10256),
        (-1, -1, 5000, 5000, None),
        (200, 200, 5000, 0, 200),
    ],
)
def test_as_many_files_stay_open_as_may(soft, hard, wanted, kept, raised, monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.append(to))
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    assert gathering._most_open(wanted) == kept
    assert limits == ([] if raised is None else [(raised, hard)])


def test_what_lies_close_is_read_at_once(tmp_path, monkeypatch):
    """Few calls for many short documents, and no reading across a wide gap."""
    stored = Stored(tmp_path, 0)
    calls = []
    monkeypatch.setattr(
        gathering, "read_at", lambda _, to, size, start: calls.append((int(start), int(size))) or 1
    )
    monkeypatch.setattr(gathering, "move", lambda *_: None)
    starts = np.array([0, 10, 20, 30 + GAP, 40 + GAP, 60 + 3 * GAP])
    sizes = np.full(6, 10)
    buffer = np.empty(RUN, np.uint8)
    read = gathering._read_runs.py_func
    done = read(0, 0, starts, sizes, starts, 0, 6, stored.tokens, buffer)
    assert done == 6
    assert calls == [(0, 50 + GAP), (60 + 3 * GAP, 10)]
    calls.clear()
    starts = np.arange(0, 3 * RUN, GAP)
    sizes = np.full(len(starts), GAP)
    read(0, 0, starts, sizes, starts, 0, len(starts), stored.tokens, buffer)
    assert [size for _, size in calls] == [RUN, RUN, RUN]


@pytest.mark.parametrize("maps", [True, False], ids=["mapped", "not mapped"])
def test_a_file_of_many_short_documents_is_read_in_windows(tmp_path, maps, monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 3 * WINDOW, dtype=np.uint8)
    base = 1000  # of the file, among all
    path = tmp_path / "data"
    data.tofile(path)
    # Close together, then a long one across the border of a window, then far apart.
    near = np.arange(base, base + WINDOW, 5000)
    starts = np.concatenate([near, base + 2 * WINDOW + (np.arange(9) << 20)])
    sizes = np.full(len(starts), 700)
    sizes[len(near) - 1] = WINDOW // 2
    targets = np.cumsum(sizes) - sizes
    mapped, map_at = [], gathering.map_at

    def remember(descriptor, size, offset):
        mapped.append((int(offset), int(size)))
        return map_at(descriptor, size, offset) if maps else 0

    def move(*where):
        ctypes.memmove(*map(int, where))

    monkeypatch.setattr(gathering, "map_at", remember)
    monkeypatch.setattr(gathering, "move", move)
    monkeypatch.setattr(gathering, "_read_runs", gathering._read_runs.py_func)
    out = np.zeros(int(sizes.sum()), np.uint8)
    with path.open("rb") as file:
        columns = starts, sizes, targets
        read = gathering._read_windows.py_func
        done = read(file.fileno(), base, *columns, 0, len(starts), out, np.empty(RUN, np.uint8))
    assert done == len(starts)
    expected = [data[start - base :][:size] for start, size in zip(starts, sizes, strict=True)]
    assert np.array_equal(out, np.concatenate(expected))
    assert mapped == [(0, int(near[-2]) + 700 - base)]


def test_a_part_that_was_cut_is_named(tmp_path):
    stored = Stored(tmp_path, 0)
    path = tmp_path / f"1.{TOKENS}"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2)
    out = np.empty(len(stored.tokens), np.uint16)
    read = Reader(stored.corpus, TOKENS).read
    for threads in (1, 3):
        with (
            closing(Gatherer(threads)) as gatherer,
            pytest.raises(OSError, match="shorter than it was") as caught,
        ):
            gatherer.gather(read, stored.block(np.arange(150)), out)
        assert caught.value.filename == str(path)


@pytest.mark.parametrize("most_open", [0, 3], ids=["opened late", "kept open"])
def test_a_part_that_is_gone_is_named(tmp_path, most_open, monkeypatch):
    monkeypatch.setattr(gathering, "_most_open", lambda _: most_open)
    stored = Stored(tmp_path, 0)
    (tmp_path / f"2.{TOKENS}").unlink()
    out = np.empty(len(stored.tokens), np.uint16)
    with (
        closing(Gatherer(2)) as gatherer,
        pytest.raises(FileNotFoundError, match=rf"2\.{TOKENS}"),
    ):
        gatherer.gather(Reader(stored.corpus, TOKENS).read, stored.block(np.arange(150)), out)
