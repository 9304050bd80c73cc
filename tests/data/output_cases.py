"""What a build has written, for comparing."""

import hashlib
from pathlib import Path

from rwkvkit import WorldTokenizer, open_binidx


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def decoded(prefix: Path) -> list[str]:
    """Return the text of each document in a dataset of the World vocabulary, which is checked."""
    data = open_binidx(prefix)
    data.verify()
    assert all(tokens[-1] == 0 for tokens in data)
    tokenizer = WorldTokenizer()
    return [tokenizer.decode(tokens) for tokens in data]
