"""Any tokenizer that a ``tokenizer.json`` describes, through the package ``tokenizers``."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.errors import DataError, RecipeError, SetupError
from rwkvkit.tokenizer.utf8 import END_BYTE, utf8

_END_TOKENS = ("<|endoftext|>", "</s>")


class HuggingFaceTokenizer:
    """Encode text to the ids of a ``tokenizer.json`` and back.

    Text that looks like a special token is encoded as the text it is, unless that token is a word
    of the model itself, or not marked as special in the file. A build refuses documents that would
    so forge an end of document. What the file says about truncation and padding is not heeded, and
    nothing is added before or after a text.

    Attributes:
        vocab_size: number of ids, up to the largest one that is a token.
        max_id: that one.
        dtype: what ids fit in: uint16 up to 65,536 ids, else int32.
        end_id: the id that ends documents.
        end_token: the token with that id.
        fingerprint: SHA-256 of the file, hexadecimal.

    Args:
        path: the ``tokenizer.json``.
        end: the token that ends documents, or its id; by default the ``eos_token`` of a
            ``tokenizer_config.json`` beside the file, else ``<|endoftext|>`` or ``</s>``, if the
            vocabulary has it, else id 0 if that is a special token.

    Raises:
        DataError: the file cannot be read or is no tokenizer.
        RecipeError: ``end`` is not in the vocabulary, or not given and nothing else is found.
        SetupError: the package ``tokenizers`` is not installed.
    """

    def __init__(self, path: str | Path, end: str | int | None = None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise SetupError(
                "the package 'tokenizers' is needed for a tokenizer.json",
                where=str(path),
                hint="pip install tokenizers",
            ) from error
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer: {error.strerror}",
                where=str(path),
                hint="check the path and its permissions",
            ) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the package raises the bare class
            raise DataError(
                f"no tokenizer: {error}",
                where=str(path),
                hint="give the tokenizer.json of the package 'tokenizers', undamaged",
            ) from error
        self._path = str(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.max_id = max(self._tokenizer.get_vocab().values(), default=0)
        self.vocab_size = self.max_id + 1
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 65536 else np.int32)
        self.end_id = self._end_id(Path(path), end)
        self.end_token = str(self._tokenizer.id_to_token(self.end_id))
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> NDArray[Any]:
        """Return the ids of ``text``, ``dtype`` [tokens].

        Raises:
            DataError: the text holds a lone surrogate, which UTF-8 cannot express.
        """
        tokens, _ = self.encode_segments(utf8(text) + END_BYTE)
        return tokens[:-1]

    def encode_segments(
        self, buffer: bytes | NDArray[np.uint8]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encode many documents at once.

        Args:
            buffer: UTF-8 documents, each ended by the byte 0xFF.

        Returns:
            ``dtype`` [tokens]: the ids of each document, each followed by ``end_id``; int64
            [documents]: how many each has, the ending one included.

        Raises:
            DataError: the vocabulary has nothing for a character, and no token for unknown ones.
        """
        texts = [text.decode() for text in bytes(buffer).split(b"\xff")[:-1]]
        try:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the package raises the bare class
            raise DataError(
                f"cannot encode {self._unknown(texts)!r}: {error}",
                where=self._path,
                hint="a tokenizer.json needs byte fallback, or a token for what it does not know",
            ) from error
        ids = [one.ids for one in encoded]
        sizes = np.array([len(one) + 1 for one in ids], np.int64)
        tokens = np.fromiter(
            (token for one in ids for token in (*one, self.end_id)), self.dtype, int(sizes.sum())
        )
        return tokens, sizes

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ``ids``; the ends of documents decode to nothing."""
        kept = [int(i) for i in ids if i != self.end_id]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def _unknown(self, texts: Sequence[str]) -> str:
        """Return the first character that cannot be encoded, or the first text that cannot."""
        for piece in (*dict.fromkeys("".join(texts)), *texts):
            try:
                self._tokenizer.encode(piece, add_special_tokens=False)
            except Exception:
                return piece[:40]
        return ""

    def _end_id(self, path: Path, end: str | int | None) -> int:
        if end is not None:
            found = end if isinstance(end, int) else self._tokenizer.token_to_id(end)
            if found is None or self._tokenizer.id_to_token(found) is None:
                raise RecipeError(
                    f"the vocabulary has no token {end!r}",
                    where=str(path),
                    hint="end is the token that ends documents, or its id",
                )
            return int(found)
        for token in (_eos_token(path.with_name("tokenizer_config.json")), *_END_TOKENS):
            found = token and self._tokenizer.token_to_id(token)
            if found is not None:
                return int(found)
        first = self._tokenizer.get_added_tokens_decoder().get(0)
        if first is None or not first.special:
            raise RecipeError(
                "it is not known which token ends documents",
                where=str(path),
                hint="name it in the recipe, encode: {tokenizer: FILE, end: TOKEN}, "
                "or as the eos_token of a tokenizer_config.json beside the file",
            )
        return 0


def _eos_token(config: Path) -> str | None:
    try:
        token = json.loads(config.read_bytes()).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
