"""What stands in the corpus and in which order, whatever the memory and the work's division."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from chunk_cases import chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from output_cases import decoded, digests

from rwkvkit import open_binidx
from rwkvkit.data.buckets import bucket_count
from rwkvkit.data.build import Build
from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.order import in_fraction
from rwkvkit.data.sources import Source
from rwkvkit.data.stages import (
    Dedup,
    Encode,
    Read,
    RepeatShuffle,
    Split,
    WriteBinidx,
)
from rwkvkit.data.writing import _cache_bytes
from rwkvkit.errors import DataError, RecipeError


def make(read, prefix: Path, *, dedup=False, validation=None, seed=42, task_bytes=None, **repeat):
    chain = [
        Read.model_validate(Read.expand(read)),
        *([Dedup()] if dedup else []),
        Encode(),
        *([Split(validation=validation)] if validation else []),
        *([RepeatShuffle(**repeat)] if repeat else []),
        WriteBinidx(prefix=str(prefix)),
    ]
    build = Build(chain, seed=seed, ctx_len=16)
    build._task_bytes = task_bytes
    return build


@pytest.fixture
def sources(tmp_path, jsonl):
    """Two sources with documents of many lengths, some of them equal."""
    texts = [f"{i % 170} " + "word " * (i * i % 67) for i in range(400)]
    jsonl("in/a.jsonl", texts)
    jsonl("in/b.jsonl", texts[50:90])
    chats = [
        {"messages": [{"role": "user", "content": f"ask {i}"},
                      {"role": "assistant", "content": "so " * (i % 9) + "."}]}
        for i in range(90)
    ]  # fmt: skip
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps(line) + "\n" for line in chats))
    return [
        {"path": f"{tmp_path}/in/*.jsonl", "repeat": 2, "fraction": 0.8},
        {"path": str(chat), "chat": "messages"},
    ]


@pytest.mark.parametrize("memory", [2_000, 20_000, 300_000])
@pytest.mark.parametrize("shuffle", [True, False, "reference"])
@pytest.mark.parametrize("more", [{}, {"dedup": True, "validation": 0.1}])
def test_the_same_bytes_for_any_memory(sources, tmp_path, monkeypatch, memory, shuffle, more):
    settings = {"epochs": 2, "shuffle": shuffle, **more}
    plain = make(sources, tmp_path / "plain" / "d", **settings).run()
    assert plain.documents > 500
    counts = []

    def counted(n_bytes: int, memory: int) -> int:
        counts.append(bucket_count(n_bytes, memory))
        return counts[-1]

    for module in ("writing", "selection"):
        monkeypatch.setattr(f"rwkvkit.data.{module}.bucket_count", counted)
    monkeypatch.setattr("rwkvkit.data.writing._cache_bytes", lambda: 0)
    small = make(sources, tmp_path / "small" / "d", task_bytes=3000, **settings)
    assert small.run(memory=memory, workers=2 if memory == 2_000 else 1) == plain
    assert digests(tmp_path / "small") == digests(tmp_path / "plain")
    assert ("d.mask" in digests(tmp_path / "plain")) is True
    assert len(counts) == (2 if shuffle is True else 0) + ("dedup" in more)
    if memory < 300_000:
        assert all(count > 1 for count in counts)


@pytest.mark.parametrize("cache", [0, 1 << 40])
def test_documents_stay_where_they_are_unless_the_cache_cannot_hold_them(
    sources, tmp_path, monkeypatch, cache
):
    """Whether tokens go through the buckets changes nothing."""
    make(sources, tmp_path / "plain" / "d", epochs=2).run()
    monkeypatch.setattr("rwkvkit.data.writing._cache_bytes", lambda: cache)
    make(sources, tmp_path / "small" / "d", epochs=2).run(memory=3000)
    assert digests(tmp_path / "small") == digests(tmp_path / "plain")


@pytest.mark.parametrize("cache", [0, 1 << 40])
@pytest.mark.parametrize("seed", range(4))
def test_documents_may_be_larger_than_a_block(sources, jsonl, tmp_path, monkeypatch, seed, cache):
    few = [jsonl("few.jsonl", ["word " * 300, "a", "more " * 500]), sources[1]]
    settings = {"epochs": 2, "seed": seed, "dedup": True, "validation": 0.1}
    make(few, tmp_path / "plain" / "d", **settings).run()
    monkeypatch.setattr("rwkvkit.data.writing._cache_bytes", lambda: cache)
    monkeypatch.setattr("rwkvkit.data.writing._BLOCK", 64)
    make(few, tmp_path / "small" / "d", **settings).run(memory=1 << 20 if cache else 3000)
    assert digests(tmp_path / "small") == digests(tmp_path / "plain")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_document_of_many_megabytes_is_shuffled(tmp_path, seed):
    """With the memory that everyone has: it is larger than a block."""
    (tmp_path / "1.txt").write_text("a\n" * 4_500_000)
    (tmp_path / "2.txt").write_text("b")
    source = {"path": f"{tmp_path}/*.txt", "format": "text"}
    make(source, tmp_path / "d", epochs=1, seed=seed).run()
    assert sorted(map(len, open_binidx(tmp_path / "d"))) == [2, 9_000_001]


@pytest.mark.parametrize(("said", "least"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_container_has_less_room_for_files(tmp_path, monkeypatch, said, least):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("rwkvkit.data.writing._CGROUP", limit)
    if said:
        limit.write_text(said)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert _cache_bytes() == (least or physical)


def test_the_reference_order(jsonl, tmp_path):
    texts = [f"document {i}" for i in range(50)]
    source = {"path": jsonl("a.jsonl", texts), "repeat": 2}
    make(source, tmp_path / "d", shuffle="reference", epochs=3, seed=7).run()
    lines = texts * 2
    expected = []
    generator = random.Random(7)
    for _ in range(3):
        generator.shuffle(lines)
        expected += lines
    assert decoded(tmp_path / "d") == expected


def test_a_fraction_is_chosen_by_the_seed_and_nothing_else(jsonl, tmp_path):
    path = jsonl("a.jsonl", [f"document {i}" for i in range(2000)])
    other = jsonl("b.jsonl", ["other"] * 10)

    def chosen(fraction, seed=1, **settings):
        read = [{"path": path, "fraction": fraction}, other]
        made = make(read, tmp_path / "d", seed=seed, **settings).run()
        documents = decoded(tmp_path / "d")
        assert made.left_out == 2010 - len(documents)
        assert documents.count("other") == 10
        return {document for document in documents if document != "other"}

    half = chosen(0.5)
    assert 900 < len(half) < 1100
    assert chosen(0.5, epochs=1, task_bytes=500) == half
    assert chosen(0.25) < half < chosen(0.75)
    assert chosen(0.5, seed=2) != half
    assert len(chosen(1.0)) == 2000


def test_what_is_outside_the_fraction_is_never_encoded(jsonl, tmp_path):
    texts = [f"{i}" for i in range(400)]
    read = Read.model_validate(Read.expand({"path": jsonl("a.jsonl", texts), "fraction": 0.25}))
    [chunk] = chunks(read.files())
    made = ChunkWork([read, Encode()], 42)(chunk)
    assert 50 < len(made.sizes) < 150
    assert len(made.sizes) + made.left_out == 400
    every = ChunkWork([read.model_copy(update={"sources": (Source(path="x"),)}), Encode()], 42)
    offsets = every(chunk).offsets
    kept = in_fraction(42, 0.25, 0, np.zeros(400, np.int64), offsets)
    assert made.offsets.tolist() == offsets[kept].tolist()


def test_dedup_keeps_the_first(jsonl, tmp_path):
    first = jsonl("a.jsonl", ["a", "b", "a", "", "c"])
    second = jsonl("b.jsonl", ["c", "d", "", "d"])
    made = make([first, second], tmp_path / "d", dedup=True).run()
    assert decoded(tmp_path / "d") == ["a", "b", "", "c", "d"]
    assert (made.documents_in, made.duplicates, made.documents) == (9, 4, 5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text("ab", max_size=3), min_size=1, max_size=60),
    st.sampled_from([1 << 10, 4 << 10]),
)
def test_dedup_is_what_a_set_would_do(tmp_path_factory, texts, memory):
    folder = tmp_path_factory.mktemp("dedup")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = make(str(folder / "a.jsonl"), folder / "d", dedup=True, task_bytes=100)
    made.run(memory=memory)
    assert decoded(folder / "d") == list(dict.fromkeys(texts))


def test_no_document_is_in_both_halves_of_a_split(jsonl, tmp_path):
    path = jsonl("a.jsonl", [f"document {i % 1500}" for i in range(2000)])
    source = {"path": path, "repeat": 3}
    made = make(source, tmp_path / "d", validation=0.1, epochs=2).run()
    training, validation = decoded(tmp_path / "d"), decoded(tmp_path / "d-val")
    assert not set(training) & set(validation)
    assert set(training) | set(validation) == {f"document {i}" for i in range(1500)}
    assert 100 < len(set(validation)) < 200
    numbers = [int(document.split()[1]) for document in validation]
    assert numbers == [i % 1500 for i in range(2000) if i % 1500 in set(numbers)]
    assert len(training) == 6 * (2000 - len(validation))
    assert made.validation.documents == len(validation)
    assert made.validation.tokens == open_binidx(tmp_path / "d-val").n_tokens
    assert [file.path for file in made.outputs] == ["d.bin", "d.idx", "d-val.bin", "d-val.idx"]

    make(source, tmp_path / "d").run()
    assert not (tmp_path / "d-val.bin").exists()


def test_a_split_that_leaves_nothing_to_train_on(jsonl, tmp_path):
    with pytest.raises(DataError, match="no document is left for training") as caught:
        make(jsonl("a.jsonl", ["a"]), tmp_path / "d", validation=1 - 1e-12).run()
    assert "smaller share" in caught.value.hint


def test_a_dedup_after_encode_is_out_of_place(tmp_path):
    chain = [Read.model_validate(Read.expand("a")), Encode(), Dedup(), WriteBinidx(prefix="d")]
    with pytest.raises(RecipeError, match="dedup needs text before it"):
        Build(chain, seed=1, ctx_len=16)


@given(st.integers(0, 2**50), st.integers(1, 2**40))
def test_bucket_counts_are_powers_of_two_that_suffice(n_bytes, memory):
    count = bucket_count(n_bytes, memory)
    assert count & (count - 1) == 0
    assert n_bytes <= count * memory or count == 4096
    assert count == 1 or n_bytes > count // 2 * memory
