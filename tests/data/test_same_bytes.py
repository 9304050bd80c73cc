"""The bytes of a dataset depend on nothing but the recipe and the inputs."""

import json
import random

import pytest
from output_cases import digests

from rwkvkit import open_binidx
from rwkvkit.data.buckets import bucket_count

KB, MB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[dict]:
    """Long, short and masked documents, 1.5 MB of them."""
    folder = tmp_path_factory.mktemp("in")
    rng = random.Random(5)
    words = [f"{rng.randrange(10**9):x}" for _ in range(500)]
    with (folder / "text.jsonl").open("w") as lines:
        for size in [3, 40, 300, 12_000] * 60:
            lines.write(json.dumps({"text": " ".join(rng.choices(words, k=size // 2))}) + "\n")
    with (folder / "chat.jsonl").open("w") as lines:
        for _ in range(800):
            roles = ["user", "assistant"] * rng.randrange(1, 4)
            turns = [{"role": role, "content": " ".join(rng.choices(words, k=9))} for role in roles]
            lines.write(json.dumps({"messages": turns}) + "\n")
    return [
        {"path": str(folder / "text.jsonl"), "repeat": 2},
        {"path": str(folder / "chat.jsonl"), "chat": "messages"},
    ]


@pytest.fixture(scope="module")
def expected(sources, build_at, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("expected")
    build_at(folder, sources, repeat={"epochs": 2}).run(workers=1)
    data = open_binidx(folder / "data")
    assert 0 < data.mask(0, data.n_tokens).mean() < 1
    return digests(folder)


@pytest.mark.parametrize(
    ("workers", "chunk", "task", "memory"),
    [
        (1, 64 * KB, 16 * MB, 256 * KB),
        (1, MB, 100 * KB, 2048 * MB),
        (1, 4 * MB, 300 * KB, MB),
        (1, 64 * MB, 16 * MB, 2048 * MB),
        (2, 64 * KB, 100 * KB, 64 * KB),
        (3, 64 * MB, 300 * KB, 2048 * MB),
        (7, 256 * KB, 50 * KB, 256 * KB),
    ],
)
def test_workers_chunks_tasks_and_memory_change_nothing(
    sources, expected, build_at, tmp_path, monkeypatch, workers, chunk, task, memory
):
    counts = []

    def counted(n_bytes: int, memory: int) -> int:
        counts.append(bucket_count(n_bytes, memory))
        return counts[-1]

    monkeypatch.setattr("rwkvkit.data.writing.bucket_count", counted)
    monkeypatch.setattr("rwkvkit.data.writing._cache_bytes", lambda: 0)
    made = build_at(tmp_path, sources, repeat={"epochs": 2})
    made._chunk_bytes, made._task_bytes = chunk, task
    made.run(workers=workers, memory=memory)
    assert digests(tmp_path) == expected
    assert (min(counts) > 1) == (memory <= MB)
