"""What a build has written, for comparing."""

import hashlib
from pathlib import Path

from rwkvkit import WorldTokenizer, open_binidx


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder that is not of this machine alone."""
    there = (path for path in folder.iterdir() if not path.name.endswith(".inputs.json"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


def decoded(prefix: Path) -> list[str]:
    """Return the text of each document in a dataset of the World vocabulary, which is checked."""
    data = open_binidx(prefix)
    data.verify()
    assert all(tokens[-1] == 0 for tokens in data)
    tokenizer = WorldTokenizer()
    return [tokenizer.decode(tokens) for tokens in data]
