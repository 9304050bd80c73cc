"""The place of an output: what else lies there, and how the files of a build come into it."""

import contextlib
from pathlib import Path

from rwkvkit import files
from rwkvkit.data import card
from rwkvkit.data import manifest as manifests
from rwkvkit.data.chain import Chain
from rwkvkit.data.finish import MASKS, REJECTS, SUFFIXES, VALIDATION
from rwkvkit.data.manifest import Manifest, manifest_path, read_manifest
from rwkvkit.errors import DataError, RecipeError


def check_place(prefix: Path, *, splits: bool) -> None:
    """Check that an output can be written without harm to a dataset that is another's.

    Args:
        prefix: path of the output, without suffix.
        splits: whether it has a part for validation, PREFIX-val.

    Raises:
        RecipeError: PREFIX-val is a dataset of its own, or PREFIX the part of another dataset.
    """
    part = _beside(prefix, VALIDATION)
    if splits and manifest_path(part).exists():
        raise RecipeError(
            "the part for validation would replace a dataset of its own",
            where=str(part),
            hint="give write-binidx another prefix, or move that dataset away",
        )
    whole = prefix.with_name(prefix.name.removesuffix(VALIDATION))
    if whole.name not in ("", prefix.name) and (old := _readable(whole)) and old.validation:
        raise RecipeError(
            f"this is the part for validation of the dataset {whole}",
            where=str(prefix),
            hint="give write-binidx another prefix, or move that dataset away",
        )


def output_names(chain: Chain) -> str:
    """Name all files that a build and its card leave, for people."""
    masks = [".mask"] if chain.read.masked else []
    suffixes = [".bin", ".idx", *masks]
    if chain.rules.validation:
        suffixes += [VALIDATION + suffix for suffix in suffixes]
    suffixes += [manifests.SUFFIX, card.SUFFIX, card.PLOT_SUFFIX]
    named = ", ".join(f"{chain.prefix}{suffix}" for suffix in suffixes)
    skips = chain.read.on_error == "skip"
    return named + (f"; for bad lines {chain.prefix}{REJECTS}" if skips else "")


def publish(folder: Path, prefix: Path) -> None:
    """Move what was built in ``folder`` to its place.

    Of the output that was there nothing is left: what its manifest names and was not built goes,
    and so does a mask, which would be taken for that of the new tokens. The manifest vouches for
    the other files: its old one goes before they change and the new one comes last, so that a kill
    in between leaves an output that nothing vouches for, never a mixture that looks whole.

    Args:
        folder: of the build.
        prefix: path of the output, without suffix.

    Raises:
        OSError: a file cannot be moved or removed.
    """
    built = [suffix for suffix in SUFFIXES if _beside(folder / prefix.name, suffix).exists()]
    stale = {mask for pair, mask in MASKS.items() if pair in built and mask not in built}
    if old := _readable(prefix):
        listed = {prefix.with_name(output.path) for output in old.outputs}
        stale |= {suffix for suffix in SUFFIXES if _beside(prefix, suffix) in listed}
    # While the old manifest is there: after a kill it is what knows of the rest.
    for suffix in stale.difference(built):
        _beside(prefix, suffix).unlink(missing_ok=True)
    manifest_path(prefix).unlink(missing_ok=True)
    for suffix in built:
        _beside(folder / prefix.name, suffix).replace(_beside(prefix, suffix))
    files.fsync(prefix.parent)


def _readable(prefix: Path) -> Manifest | None:
    with contextlib.suppress(DataError):
        return read_manifest(prefix)
    return None


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)
