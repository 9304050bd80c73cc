"""Check a dataset against its manifest, down to every token."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rwkvkit import files
from rwkvkit.data.binidx import Binidx, bin_path, open_binidx
from rwkvkit.data.contents import check_tokens, tokenizer_of
from rwkvkit.data.finish import VALIDATION
from rwkvkit.data.manifest import Counts, Manifest, fingerprint, manifest_path, read_manifest
from rwkvkit.data.stages import PlanResult
from rwkvkit.errors import DataError
from rwkvkit.tokenizer.text import Tokenizer
from rwkvkit.tokenizer.world import WorldTokenizer

_SAMPLES = 200
_DAMAGED = "it was changed or damaged: remove it, and rwkvkit prepare makes it again"
_UNREADABLE = "check its permissions; where it is gone, rwkvkit prepare makes it again"


def verify_dataset(prefix: str | Path, vocab: str | Path | None = None) -> Iterator[str]:
    """Check a dataset, and yield what was found right, in words, as it is found.

    Checked are the manifest against its own hash and fingerprint, the size and hash of every file
    it names, the counts, the index against the data, the range of every token, and of a sample of
    documents that they end as documents do and, with the World tokenizer, are text that encodes to
    the same tokens; at last magic prime and exit tokens.

    Args:
        prefix: path of the dataset, with or without suffix.
        vocab: the vocabulary file or ``tokenizer.json``, if it is not that of the World models.

    Raises:
        DataError: something is wrong, or there is no manifest to go by.
    """
    path = Path(str(bin_path(prefix)).removesuffix(".bin"))
    manifest = read_manifest(path)
    if manifest is None:
        trained = Path(str(path).removesuffix(VALIDATION))
        raise DataError(
            "there is no manifest to go by",
            where=str(manifest_path(path)),
            hint=f"it is part of another dataset: rwkvkit verify {trained} checks both"
            if trained != path and manifest_path(trained).exists()
            else "rwkvkit inspect checks a dataset that has none",
        )
    _check_fingerprint(manifest, path)
    for output in manifest.outputs:
        _check_file(path.with_name(output.path), output.bytes, output.sha256)
    yield f"{len(manifest.outputs)} files agree with the manifest"
    tokenizer = _tokenizer(manifest, vocab)
    sets = [(path, Counts(documents=manifest.documents, tokens=manifest.tokens))]
    if manifest.validation:
        sets.append((path.with_name(path.name + VALIDATION), manifest.validation))
    for own, counts in sets:
        data = open_binidx(own)
        data.verify()
        if (len(data), data.n_tokens) != (counts.documents, counts.tokens):
            raise DataError(
                f"{len(data):,} documents and {data.n_tokens:,} tokens, where the manifest has "
                f"{counts.documents:,} and {counts.tokens:,}",
                where=str(own),
                hint=_DAMAGED,
            )
        yield f"{own.name}: the index agrees with the data"
        check_tokens(data, tokenizer.max_id, _DAMAGED)
        yield f"{own.name}: all {data.n_tokens:,} tokens are in 0..{tokenizer.max_id}"
        checked = _check_samples(data, tokenizer, segmented=_segmented(manifest))
        are = "are text" if isinstance(tokenizer, WorldTokenizer) else "end as documents do"
        yield f"{own.name}: {checked} sample documents {are}"
    if manifest.plan:
        _check_plans([manifest.plan, *manifest.plans], manifest.tokens, path)
        yield f"the magic prime is {manifest.plan.magic_prime}, as sympy finds it"


def _check_fingerprint(manifest: Manifest, path: Path) -> None:
    """Check that the manifest has the fingerprint of what it says the dataset is made from."""
    own = fingerprint(
        manifest.prepare,
        manifest.seed,
        manifest.ctx_len,
        manifest.inputs,
        layout=manifest.format,
        version=manifest.rwkvkit,
    )
    if own != manifest.fingerprint:
        raise DataError(
            "the fingerprint is not that of the recipe and the inputs that the manifest names",
            where=str(manifest_path(path)),
            hint=_DAMAGED,
        )


def _check_file(path: Path, size: int, sha256: str) -> None:
    try:
        same = path.stat().st_size == size and files.sha256(path) == sha256
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), hint=_UNREADABLE
        ) from error
    if not same:
        raise DataError("not the file that the manifest describes", where=str(path), hint=_DAMAGED)


def _tokenizer(manifest: Manifest, vocab: str | Path | None) -> Tokenizer:
    """Load the tokenizer that the dataset was made with."""
    tokenizer = tokenizer_of(manifest, vocab)
    if tokenizer is None:
        raise DataError(
            "the dataset was made with another vocabulary",
            where=str(vocab or "World"),
            hint="name its vocabulary file or tokenizer.json with --vocab",
        )
    return tokenizer


def _check_samples(data: Binidx, tokenizer: Tokenizer, *, segmented: bool) -> int:
    """Check documents spread over the whole; return their number.

    The segments of a conversation were encoded one by one, so the whole need not give the same
    tokens; it must be text all the same. A ``tokenizer.json`` may change text before it encodes, so
    what its tokens decode to proves nothing.
    """
    numbers = np.unique(np.linspace(0, len(data) - 1, min(_SAMPLES, len(data)), dtype=np.int64))
    for number in numbers.tolist():
        tokens = data[number]
        where = f"{data.prefix}.bin, document {number}"
        if not len(tokens) or tokens[-1] != tokenizer.end_id:
            what = f"the document does not end with token {tokenizer.end_id}"
            raise DataError(what, where=where, hint=_DAMAGED)
        if not isinstance(tokenizer, WorldTokenizer):
            continue
        try:
            text = tokenizer.decode_bytes(tokens[:-1]).decode()
        except UnicodeDecodeError as error:
            raise DataError("the tokens are no text", where=where, hint=_DAMAGED) from error
        if not segmented and not np.array_equal(tokenizer.encode(text), tokens[:-1]):
            raise DataError("its text does not encode to its tokens", where=where, hint=_DAMAGED)
    return len(numbers)


def _check_plans(plans: list[PlanResult], n_tokens: int, path: Path) -> None:
    """Check exit tokens and magic primes, these with another program than the one they are from."""
    from sympy import isprime

    for plan in plans:
        prime, slots = plan.magic_prime, n_tokens // max(plan.ctx_len, 1)
        is_one = prime < slots and prime % 3 == 2 and isprime(prime)
        if (
            plan.my_exit_tokens != n_tokens
            or not is_one
            or any(isprime(larger) for larger in range(prime + 3, slots, 3))
        ):
            raise DataError(
                f"magic_prime {prime} and my_exit_tokens {plan.my_exit_tokens} are not those of "
                f"{n_tokens} tokens at ctx_len {plan.ctx_len}",
                where=str(manifest_path(path)),
                hint=_DAMAGED,
            )


def _segmented(manifest: Manifest) -> bool:
    """Whether the dataset may hold conversations."""
    sources = [s for record in manifest.prepare for s in record.settings.get("sources", ())]
    return any(source.get("chat") for source in sources)
