"""What is in a binidx: counts, lengths, sample documents, and whether all of it holds together."""

from pathlib import Path
from typing import Any

import numpy as np

from rwkvkit import files
from rwkvkit.data.binidx import BLOCK, Binidx, bin_path, idx_path, mask_path, open_binidx
from rwkvkit.data.contents import (
    check_mask,
    check_tokens,
    largest_id,
    length_histogram,
    manifest_of,
    tokenizer_of,
)
from rwkvkit.data.manifest import Manifest, manifest_path
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.text import Tokenizer
from rwkvkit.tokenizer.world import WorldTokenizer

_SAMPLES = 2
_SAMPLE_TOKENS = 64


def describe_binidx(prefix: str | Path) -> dict[str, Any]:
    """Read a binidx through, check it, and return what it holds, ready for JSON.

    Checked are the index against the data, the range of every token, and, if there is a manifest,
    the hashes of the files. The validation part of a dataset has that of the whole. Without one
    the vocabulary is taken to be that of World.

    Args:
        prefix: path of the pair, with or without suffix.

    Returns:
        ``documents``, ``tokens``, ``dtype``, ``bytes`` (of the token file);
        ``length``: ``min``, ``median``, ``mean``, ``p90``, ``max`` in tokens, the ending 0
        included; ``histogram``: a list of ``from``, ``to`` (exclusive, powers of two) and
        ``documents``; ``first`` and ``last``: sample documents, each ``document``, ``tokens`` and
        the beginning of its ``text``, with a mask also ``counted``, what of it counts in the loss
        (ids stand for the text where the vocabulary is not that of World);
        ``masked``: ``counted``, how many tokens count in the loss, and their ``share``, or None;
        ``verified``: what was checked, in words; ``manifest``: its ``prepare``, ``plan`` (None for
        a validation part), ``inputs`` (their number) and ``rejected``, or None.

    Raises:
        DataError: anything of it is wrong.
    """
    data = open_binidx(prefix)
    data.verify()
    manifest = manifest_of(Path(data.prefix))
    if manifest:
        _check_files(Path(data.prefix), manifest)
    tokenizer, max_id = _vocabulary(manifest)
    check_tokens(data, max_id, "the file is damaged, or made with another vocabulary")
    verified = ["index agrees with data", "every token in range"]
    if manifest:
        verified.append("files agree with the manifest")
    tail = range(max(len(data) - _SAMPLES, min(_SAMPLES, len(data))), len(data))
    return {
        "documents": len(data),
        "tokens": data.n_tokens,
        "dtype": data.dtype.name,
        "bytes": bin_path(data.prefix).stat().st_size,
        "length": _lengths(data),
        "histogram": _histogram(data),
        "first": [_sample(data, i, tokenizer) for i in range(min(_SAMPLES, len(data)))],
        "last": [_sample(data, i, tokenizer) for i in tail],
        "masked": _masked(data),
        "verified": verified,
        "manifest": _told(manifest, Path(data.prefix)) if manifest else None,
    }


def _vocabulary(manifest: Manifest | None) -> tuple[Tokenizer | None, int]:
    """Return the tokenizer, None if it is not that of World, and the largest id it can give."""
    if manifest is None:
        world = WorldTokenizer()
        return world, world.max_id
    tokenizer = tokenizer_of(manifest)
    return tokenizer, tokenizer.max_id if tokenizer else largest_id(manifest)


def _check_files(prefix: Path, manifest: Manifest) -> None:
    paths = [bin_path(prefix), idx_path(prefix)]
    known = {output.path: output.sha256 for output in manifest.outputs}
    check_mask(prefix, manifest)
    if mask_path(prefix).exists():
        paths.append(mask_path(prefix))
    for path in paths:
        if known.get(path.name) != files.sha256(path):
            raise DataError(
                "not the file that the manifest describes",
                where=str(path),
                hint="it was changed or damaged: build it again",
            )


def _told(manifest: Manifest, prefix: Path) -> dict[str, Any]:
    plan = manifest.plan if manifest_path(prefix).exists() else None  # else it is for the whole
    return {
        "prepare": [record.model_dump(mode="json") for record in manifest.prepare],
        "plan": plan.model_dump(mode="json") if plan else None,
        "inputs": len(manifest.inputs),
        "rejected": manifest.rejected,
    }


def _lengths(data: Binidx) -> dict[str, float]:
    if not len(data):
        return dict.fromkeys(("min", "median", "mean", "p90", "max"), 0)
    sizes = data.sizes
    median, p90 = np.percentile(sizes, (50, 90), method="lower")
    return {
        "min": int(sizes.min()),
        "median": int(median),
        "mean": float(sizes.mean()),
        "p90": int(p90),
        "max": int(sizes.max()),
    }


def _histogram(data: Binidx) -> list[dict[str, int]]:
    powers, counts = length_histogram(data.sizes)
    return [
        {"from": 2**power // 2, "to": 2**power, "documents": count}
        for power, count in zip(powers.tolist(), counts.tolist(), strict=True)
    ]


def _masked(data: Binidx) -> dict[str, float] | None:
    if not data.has_mask:
        return None
    starts = range(0, data.n_tokens, BLOCK)
    blocks = (data.mask(start, min(BLOCK, data.n_tokens - start)) for start in starts)
    counted = sum(int(np.count_nonzero(block)) for block in blocks)
    return {"counted": counted, "share": counted / max(data.n_tokens, 1)}


def _sample(data: Binidx, i: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    tokens = data[i]
    shown = tokens[:_SAMPLE_TOKENS]
    text = tokenizer.decode(shown) if tokenizer else " ".join(map(str, shown))
    if len(tokens) > _SAMPLE_TOKENS:
        text = text.rstrip("\ufffd") + " …"
    sample = {"document": i, "tokens": len(tokens), "text": text}
    if data.has_mask and tokenizer:
        start = int(data.sizes[:i].sum(dtype=np.int64))
        mask = data.mask(start, len(shown))
        borders = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2)
        sample["counted"] = [tokenizer.decode(tokens[a:b]) for a, b in borders]
    return sample
