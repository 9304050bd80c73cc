"""The index of the documents on disk: what is read of it, and how little is in memory at once."""

import tracemalloc
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from rwkvkit.data import parts as parting
from rwkvkit.data.chunk_work import EncodedChunk
from rwkvkit.data.corpus import Corpus
from rwkvkit.data.parts import Part, PartWriter
from rwkvkit.data.selection import Rules, Selection
from rwkvkit.data.writing import CorpusWriter


def make_chunk(rng: np.random.Generator, n_documents: int) -> EncodedChunk:
    sizes = rng.integers(1, 4, n_documents, np.int32)
    offsets = rng.integers(0, 2**40, n_documents)
    files = np.zeros(n_documents, np.uint32)
    tokens = rng.integers(0, 65536, sizes.sum(), np.uint16)
    return EncodedChunk(files, offsets, sizes, tokens, [], 0)


def write_part(folder, number: int, n_chunks: int, n_documents: int, *, hashed: bool) -> Part:
    """Write a part of chunks of ``n_documents``."""
    rng = np.random.default_rng(number)
    with PartWriter(folder, number, hashed=hashed) as writer:
        for _ in range(n_chunks):
            writer.add(make_chunk(rng, n_documents))
        return writer.finish({})


def make_corpus(parts: list[Part]) -> Corpus:
    tasks = [SimpleNamespace(files=[SimpleNamespace(source=0)]) for _ in parts]
    return Corpus(tasks, parts, [SimpleNamespace(number=0)])


@contextmanager
def traced():
    """Yield an object that will have the bytes ``kept`` by the body and the ``peak`` in it."""
    found = SimpleNamespace()
    tracemalloc.start()
    try:
        yield found
        found.kept, found.peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_going_through_the_documents_keeps_nothing_of_them(tmp_path):
    """Whatever is kept for each document outgrows the memory that a build may take."""
    corpus = make_corpus([write_part(tmp_path, i, 1, 50_000, hashed=True) for i in range(4)])
    with traced() as memory:
        total = sum(int(documents.sizes.sum()) for documents in corpus.documents())
    assert total == corpus.n_tokens
    assert memory.peak > 8 * 50_000  # it does see the arrays
    assert memory.kept < 50_000


def test_a_part_of_any_size_takes_as_much_memory(tmp_path):
    """A compressed file, an Arrow file or a dataset by name is one part, however large."""
    with traced() as writing:
        part = write_part(tmp_path, 0, 40, 50_000, hashed=False)
    corpus = make_corpus([part])
    with traced() as reading:
        total = sum(int(documents.sizes.sum()) for documents in corpus.documents())
    assert total == corpus.n_tokens
    assert corpus.n_documents == 2_000_000
    assert writing.peak < 6 * 2_000_000
    assert reading.peak < 12 * 2_000_000


def test_the_validation_set_is_never_in_memory_as_a_whole(tmp_path):
    corpus = make_corpus([write_part(tmp_path, i, 1, 1000, hashed=True) for i in range(8)])
    given, most = [], []

    class Watched(Selection):
        def documents(self, *args):
            for documents in super().documents(*args):
                given.append(weakref.ref(documents.sizes))
                most.append(sum(each() is not None for each in given))
                yield documents

    selection = Watched(corpus, Rules(0, dedup=False, validation=0.9), tmp_path, 1 << 20)
    settings = {"memory": 1 << 20, "threads": 1, "report": lambda _: None}
    with CorpusWriter(corpus, selection, tmp_path, **settings) as writer:
        written = writer.write_validation(tmp_path / "d-val")
    assert 7000 < written.n_documents < 7400
    assert max(most) <= 3


@pytest.mark.parametrize("hashed", [False, True])
def test_the_documents_are_the_same_in_slices_of_any_size(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(parting, "_HELD", 100)  # so that columns go to disk on the way
    corpus = make_corpus([write_part(tmp_path, i, 3, 20, hashed=hashed) for i in range(2)])
    rng = np.random.default_rng(1)
    chunks = [make_chunk(rng, 20) for _ in range(3)]
    for slice_size in (7, 60, 1000):
        monkeypatch.setattr(parting, "_SLICE", slice_size)
        found = list(corpus.documents())
        assert [len(each.sizes) for each in found] == 2 * (
            [7] * 8 + [4] if slice_size == 7 else [60]
        )
        assert [each.first for each in found] == [
            sum(len(before.sizes) for before in found[:i]) for i in range(len(found))
        ]
        sizes, offsets, places = (
            np.concatenate([getattr(each, name) for each in found])
            for name in ("sizes", "offsets", "places")
        )
        assert np.array_equal(places, np.cumsum(sizes) - sizes)
        assert np.array_equal(sizes[60:], np.concatenate([chunk.sizes for chunk in chunks]))
        assert np.array_equal(offsets[60:], np.concatenate([chunk.offsets for chunk in chunks]))
        if hashed:
            hashes = np.concatenate([each.hashes for each in found])
            assert len(np.unique(hashes, axis=0)) > 100
            expected = np.concatenate([parting._hashes(chunk) for chunk in chunks])
            assert np.array_equal(hashes[60:], expected)
        else:
            assert all(each.hashes is None for each in found)
