"""What several commands ask of a dataset: its manifest, its vocabulary, its tokens and lengths."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.binidx import BLOCK, Binidx, mask_path, open_binidx
from rwkvkit.data.finish import VALIDATION
from rwkvkit.data.manifest import Manifest, read_manifest
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.text import Tokenizer, load_tokenizer
from rwkvkit.tokenizer.world import WorldTokenizer


def open_dataset(prefix: str | os.PathLike[str]) -> Binidx:
    """Open a dataset to train on or to measure; a loss mask that its manifest names must be there.

    Args:
        prefix: path of the dataset, with or without suffix.

    Raises:
        DataError: the dataset is missing or damaged, or its mask is gone.
    """
    data = open_binidx(prefix)
    manifest = None
    with suppress(DataError):  # one that cannot be read, such as another version's, tells nothing
        manifest = manifest_of(Path(data.prefix))
    check_mask(Path(data.prefix), manifest)
    return data


def check_mask(prefix: Path, manifest: Manifest | None) -> None:
    """Check that the loss mask is there if a manifest names one.

    Args:
        prefix: path of the dataset, without suffix.
        manifest: of the dataset, if there is one.

    Raises:
        DataError: it is not.
    """
    mask = mask_path(prefix)
    if manifest and not mask.exists() and mask.name in {each.path for each in manifest.outputs}:
        raise DataError(
            "the loss mask that the manifest names is gone",
            where=str(mask),
            hint="put it back, or build the dataset again; without its manifest every token counts",
        )


def manifest_of(prefix: Path) -> Manifest | None:
    """Return the manifest that tells of a dataset: its own, or that of the one it was split from.

    Args:
        prefix: path of the dataset, without suffix.

    Raises:
        DataError: the manifest is damaged, or written by another version of rwkvkit.
    """
    own = read_manifest(prefix)
    if own is not None or not prefix.name.endswith(VALIDATION):
        return own
    whole = read_manifest(prefix.with_name(prefix.name.removesuffix(VALIDATION)))
    return whole if whole and whole.validation else None


def tokenizer_of(manifest: Manifest, vocab: str | Path | None = None) -> Tokenizer | None:
    """Return the tokenizer that made a dataset.

    Args:
        manifest: of the dataset.
        vocab: the vocabulary file or ``tokenizer.json``; None for that of the World models.

    Returns:
        The tokenizer of ``vocab``, or None if another vocabulary made the dataset.

    Raises:
        DataError, SetupError: the vocabulary is damaged or missing.
        RecipeError: it lacks the token that ends the dataset's documents.
    """
    settings = _encode_settings(manifest)
    if vocab is None and settings["tokenizer"] != "world":
        return None
    tokenizer = load_tokenizer(vocab, settings.get("end"))
    return tokenizer if tokenizer.fingerprint == settings["vocabulary"] else None


def largest_id(manifest: Manifest) -> int:
    """Return the largest id that the vocabulary of a dataset can have, which need not be there."""
    return int(_encode_settings(manifest).get("vocab_size", WorldTokenizer.vocab_size)) - 1


def check_tokens(data: Binidx, max_id: int, hint: str) -> None:
    """Check that every token is in 0..``max_id``.

    Raises:
        DataError: one is not; the first is named, with ``hint``.
    """
    for start in range(0, data.n_tokens, BLOCK):
        block = data.tokens(start, min(BLOCK, data.n_tokens - start))
        wrong = np.flatnonzero((block < 0) | (block > max_id))
        if wrong.size:
            raise DataError(
                f"token {start + wrong[0]} is {block[wrong[0]]}, not in 0..{max_id}",
                where=f"{data.prefix}.bin",
                hint=hint,
            )


def length_histogram(sizes: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count documents by length, in powers of two, without empty ends.

    Args:
        sizes: tokens in each, [documents].

    Returns:
        int64 [bars], following one another: the power p of 2**p, which is above every length of a
        bar, half of it not; and how many documents the bar has.
    """
    _, powers = np.frexp(sizes.astype(np.float64))
    counts = np.bincount(powers)
    filled = np.flatnonzero(counts)
    shown = np.arange(filled[0], filled[-1] + 1) if filled.size else filled
    return shown, counts[shown]


def _encode_settings(manifest: Manifest) -> dict[str, Any]:
    [settings] = [record.settings for record in manifest.prepare if record.stage == "encode"]
    return settings
