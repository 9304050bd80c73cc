import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvkit.data.build import Build
from rwkvkit.data.stages import Encode, Plan, Read, RepeatShuffle, Stage, WriteBinidx


def make_chain(
    read: Any,
    prefix: str | Path,
    *,
    repeat: dict[str, Any] | None = None,
    plan: bool = False,
    vocab: str | None = None,
) -> list[Stage]:
    """Return the chain that the recipe's ``prepare`` with these values stands for."""
    return [
        Read.model_validate(Read.expand(read)),
        Encode(vocab=vocab),
        *([RepeatShuffle(**repeat)] if repeat is not None else []),
        WriteBinidx(prefix=str(prefix)),
        *([Plan()] if plan else []),
    ]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Build]:
    """Return a function that makes a Build with its output at ``tmp_path/out/data``."""

    def make(
        read: Any,
        *,
        prefix: str | Path = tmp_path / "out" / "data",
        seed: int = 42,
        ctx_len: int = 16,
        chunk_bytes: int | None = None,
        task_bytes: int | None = None,
        **chain: Any,
    ) -> Build:
        made = Build(make_chain(read, prefix, **chain), seed=seed, ctx_len=ctx_len)
        if chunk_bytes is not None:
            made._chunk_bytes = chunk_bytes
        made._task_bytes = task_bytes
        return made

    return make


@pytest.fixture(scope="session")
def build_at() -> Callable[..., Build]:
    """Return a function that makes a Build with its output at ``folder/data``."""

    def make(folder: Path, read: Any, **chain: Any) -> Build:
        return Build(make_chain(read, folder / "data", **chain), seed=42, ctx_len=16)

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes documents to a jsonl file and returns its path."""

    def write(name: str, documents: list[Any], field: str = "text") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({field: document}) + "\n" for document in documents]
        path.write_text("".join(lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def golden() -> Path:
    """Return the folder of the golden data files."""
    return Path(__file__).parents[1] / "golden" / "data"
