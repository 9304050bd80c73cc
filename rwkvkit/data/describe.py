"""What is in a binidx: counts, lengths, sample documents, and whether all of it holds together."""

from pathlib import Path
from typing import Any

import numpy as np

from rwkvkit import files
from rwkvkit.data.binidx import Binidx, bin_path, idx_path, mask_path, open_binidx
from rwkvkit.data.manifest import manifest_path, read_manifest
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.world import WorldTokenizer

_BLOCK = 4 << 20  # tokens
_SAMPLES = 2
_SAMPLE_TOKENS = 64


def describe_binidx(prefix: str | Path) -> dict[str, Any]:
    """Read a binidx through, check it, and return what it holds, ready for JSON.

    Checked are the index against the data, the range of every token, and, if there is a manifest,
    the hashes of the files.

    Args:
        prefix: path of the pair, with or without suffix.

    Returns:
        ``documents``, ``tokens``, ``dtype``, ``bytes`` (of the token file);
        ``length``: ``min``, ``median``, ``mean``, ``p90``, ``max`` in tokens, the ending 0
        included; ``histogram``: a list of ``from``, ``to`` (exclusive, powers of two) and
        ``documents``; ``first`` and ``last``: sample documents, each ``document``, ``tokens`` and
        the beginning of its ``text``, with a mask also ``counted``, what of it counts in the loss;
        ``masked``: ``counted``, how many tokens count in the loss, and their ``share``, or None;
        ``verified``: what was checked, in words; ``manifest``: its ``prepare``, ``plan``,
        ``inputs`` (their number) and ``rejected``, or None.

    Raises:
        DataError: anything of it is wrong.
    """
    data = open_binidx(prefix)
    tokenizer = WorldTokenizer()
    data.verify()
    _check_range(data, tokenizer)
    verified = ["index agrees with data", "every token in range"]
    manifest = _checked_manifest(Path(data.prefix))
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
        "manifest": manifest,
    }


def _check_range(data: Binidx, tokenizer: WorldTokenizer) -> None:
    for start in range(0, data.n_tokens, _BLOCK):
        block = data.tokens(start, min(_BLOCK, data.n_tokens - start))
        wrong = np.flatnonzero((block < 0) | (block > tokenizer.max_id))
        if wrong.size:
            raise DataError(
                f"token {start + wrong[0]} is {block[wrong[0]]}, not in 0..{tokenizer.max_id}",
                where=f"{data.prefix}.bin",
                hint="the file is damaged, or made with another vocabulary",
            )


def _checked_manifest(prefix: Path) -> dict[str, Any] | None:
    manifest = read_manifest(prefix)
    if manifest is None:
        return None
    paths = [bin_path(prefix), idx_path(prefix)]
    known = {output.path: output.sha256 for output in manifest.outputs}
    if mask_path(prefix).exists() or mask_path(prefix).name in known:
        paths.append(mask_path(prefix))
    for path in paths:
        if known.get(path.name) != files.sha256(path):
            raise DataError(
                f"not the file that {manifest_path(prefix).name} describes",
                where=str(path),
                hint="it was changed or damaged: build it again",
            )
    return {
        "prepare": [record.model_dump(mode="json") for record in manifest.prepare],
        "plan": manifest.plan.model_dump(mode="json") if manifest.plan else None,
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
    """Count documents by length, in powers of two, without empty ends."""
    _, powers = np.frexp(data.sizes.astype(np.float64))  # 2**(power - 1) <= size < 2**power
    counts = np.bincount(powers)
    filled = np.flatnonzero(counts)
    if not filled.size:
        return []
    return [
        {"from": 2**power // 2, "to": 2**power, "documents": int(counts[power])}
        for power in range(int(filled[0]), int(filled[-1]) + 1)
    ]


def _masked(data: Binidx) -> dict[str, float] | None:
    if not data.has_mask:
        return None
    starts = range(0, data.n_tokens, _BLOCK)
    blocks = (data.mask(start, min(_BLOCK, data.n_tokens - start)) for start in starts)
    counted = sum(int(np.count_nonzero(block)) for block in blocks)
    return {"counted": counted, "share": counted / max(data.n_tokens, 1)}


def _sample(data: Binidx, i: int, tokenizer: WorldTokenizer) -> dict[str, Any]:
    tokens = data[i]
    text = tokenizer.decode(tokens[:_SAMPLE_TOKENS])
    if len(tokens) > _SAMPLE_TOKENS:
        text = text.rstrip("\ufffd") + " …"
    sample = {"document": i, "tokens": len(tokens), "text": text}
    if data.has_mask:
        start = int(data.sizes[:i].sum(dtype=np.int64))
        mask = data.mask(start, min(len(tokens), _SAMPLE_TOKENS))
        borders = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2)
        sample["counted"] = [tokenizer.decode(tokens[a:b]) for a, b in borders]
    return sample
