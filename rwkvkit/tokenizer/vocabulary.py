"""Read the World vocabulary, check it, and keep the tables built from it in the user's cache."""

import ast
import contextlib
import hashlib
import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkvkit import files
from rwkvkit.errors import DataError, SetupError
from rwkvkit.tokenizer import trie

_FILE_NAME = "rwkv_vocab_v20230424.txt"
_MAX_ID = 65535
_MAX_BYTES = 128  # a cell has 8 bits for how far a walk goes back; see trie
_CACHE_VERSION = 4  # part of the cache's file name; raise it when the tables change


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary with its encoder tables.

    Attributes:
        text: the bytes of all tokens one after another, in the order of their ids.
        sizes: bytes in each token, by id (int64 [65536]); 0 where there is no token.
        tables: what the encoder reads.
        fingerprint: SHA-256 of the mapping from id to bytes, however the file spells it.
    """

    text: bytes
    sizes: NDArray[np.int64]
    tables: trie.Tables
    fingerprint: str


def find() -> Path:
    """Return the vocabulary file inside the installed package ``rwkv``, without importing it.

    Raises:
        SetupError: the package or its file is missing.
    """
    spec = importlib.util.find_spec("rwkv")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _FILE_NAME).is_file():
            return path
    raise SetupError(
        f"the World vocabulary {_FILE_NAME} was not found: it comes with the package 'rwkv'",
        hint="pip install rwkv, or name a vocabulary file",
    )


def load(path: Path) -> Vocabulary:
    """Return the vocabulary in ``path``, from the cache if this very file was read before.

    Raises:
        DataError: the file cannot be read, or is not a usable vocabulary.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the vocabulary: {error.strerror}",
            where=str(path),
            hint="check the path and its permissions",
        ) from error
    key = hashlib.sha256(content).hexdigest()
    stored = _cache_path(key)
    if stored and (vocabulary := _read_cache(stored)):
        return vocabulary
    vocabulary = _build(parse(content, str(path)))
    if stored:
        _write_cache(stored, vocabulary)
    return vocabulary


def parse(content: bytes, where: str) -> dict[int, bytes]:
    """Parse and check lines of ``id repr length``; the tokens by id.

    Args:
        content: the file, UTF-8.
        where: its name in error messages.

    Raises:
        DataError: a line is not of that form, an id or a token stands twice, a single byte is
            missing, or 0xFF is inside a longer token (it ends documents in joined buffers).
    """
    tokens: dict[int, bytes] = {}
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            "the vocabulary is not UTF-8", where=where, hint="save it as UTF-8"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            token_id, token = _entry(line)
            if token_id in tokens:
                raise ValueError(f"id {token_id} appears twice")
        except (ValueError, SyntaxError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise DataError(
                f"bad vocabulary line: {reason}",
                where=f"{where}:{number}",
                hint="a line is: id, Python string or bytes literal, length in bytes",
            ) from error
        tokens[token_id] = token
    _check(tokens, where)
    return tokens


def _entry(line: str) -> tuple[int, bytes]:
    """Return the id and the bytes of a line."""
    number, _, rest = line.partition(" ")
    literal, _, size = rest.rpartition(" ")
    token_id = int(number)
    if not 1 <= token_id <= _MAX_ID:
        raise ValueError(f"id {token_id} is not in 1..{_MAX_ID}")
    token = ast.literal_eval(literal)
    if isinstance(token, str):
        token = token.encode()
    if not isinstance(token, bytes):
        raise ValueError("the token is neither a string nor bytes")
    if len(token) != int(size):
        raise ValueError(f"the token has {len(token)} bytes, not {int(size)}")
    if not 1 <= len(token) <= _MAX_BYTES:
        raise ValueError(f"a token has 1 to {_MAX_BYTES} bytes, not {len(token)}")
    return token_id, token


def _check(tokens: Mapping[int, bytes], where: str) -> None:
    known = set(tokens.values())
    if len(known) < len(tokens):
        raise DataError(
            "two ids of the vocabulary have the same bytes",
            where=where,
            hint="remove one of each two such lines",
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in known]
    if missing:
        raise DataError(
            f"{len(missing)} single bytes are no token of the vocabulary, first 0x{missing[0]:02X}",
            where=where,
            hint="without them some texts cannot be encoded",
        )
    ends = [i for i, token in tokens.items() if b"\xff" in token and len(token) > 1]
    if ends:
        raise DataError(
            f"the byte 0xFF is inside token {ends[0]}; it must only stand alone",
            where=where,
            hint="remove such tokens: it ends documents, and no UTF-8 text holds it",
        )


def _build(tokens: dict[int, bytes]) -> Vocabulary:
    ordered = dict(sorted(tokens.items()))
    text = b"".join(ordered.values())
    sizes = np.zeros(_MAX_ID + 1, np.int64)
    sizes[list(ordered)] = [len(token) for token in ordered.values()]
    fingerprint = hashlib.sha256(sizes.astype("<i8").tobytes() + text).hexdigest()
    return Vocabulary(text, sizes, trie.build(ordered), fingerprint)


def _cache_path(key: str) -> Path | None:
    folder = files.cache_folder()
    return folder and folder / f"vocabulary-{_CACHE_VERSION}-{key[:32]}.npz"


def _read_cache(path: Path) -> Vocabulary | None:
    """Return what is stored, or None where nothing usable is (the archive holds checksums)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Vocabulary(
                text=stored["text"].tobytes(),
                sizes=stored["sizes"],
                tables=trie.Tables(**{name: stored[name] for name in trie.Tables._fields}),
                fingerprint=str(stored["fingerprint"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, vocabulary: Vocabulary) -> None:
    """Store the tables; a folder that cannot be written only means building them again."""
    with (
        contextlib.suppress(OSError),
        files.replacing(path) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(
            file,
            allow_pickle=False,
            text=np.frombuffer(vocabulary.text, np.uint8),
            sizes=vocabulary.sizes,
            fingerprint=np.array(vocabulary.fingerprint),
            **vocabulary.tables._asdict(),
        )
