"""What a build leaves beside its output, and what it tells the next run."""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

import rwkvkit
from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.config import Config
from rwkvkit.data.chunks import hash_file
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.seen import States, states
from rwkvkit.data.stages import PlanResult, Stage
from rwkvkit.errors import DataError

FORMAT = 2
SUFFIX = ".manifest.json"
_TICK_NS = 1_000_000_000  # the times of files are coarser than nanoseconds, at most so coarse


class FileRecord(Config):
    """A file as the build read or wrote it."""

    path: str
    """As in the recipe for an input; the bare name for an output."""

    bytes: int
    """Its size."""

    sha256: str
    """Its content, hashed."""


class OutputRecord(FileRecord):
    """A file that was written, beside the manifest."""

    @field_validator("path")
    @classmethod
    def _is_a_name(cls, path: str) -> str:
        if path in ("", ".", "..") or "/" in path or "\0" in path:
            raise ValueError("the path of an output is a bare name")
        return path


class InputRecord(FileRecord):
    """A file that was read."""

    tag: str | None = None
    """What its server called its content, such as an ETag; not there if it called it nothing."""

    @model_serializer(mode="wrap")
    def _without_no_tag(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        facts: dict[str, Any] = serialize(self)
        if self.tag is None:
            facts.pop("tag", None)
        return facts


class StageRecord(Config):
    """A stage with all its settings, defaults included."""

    stage: str
    """Its key in the recipe."""

    version: int
    """Its version when the output was made."""

    settings: dict[str, Any]
    """What the output's bytes depend on."""

    @model_validator(mode="after")
    def _names_the_vocabulary(self) -> "StageRecord":
        names = [self.settings.get(key) for key in ("tokenizer", "vocabulary")]
        if self.stage == "encode" and not all(isinstance(name, str) for name in names):
            raise ValueError("an encode stage has a tokenizer and a vocabulary")
        return self


class Counts(Config):
    """How much an output holds."""

    documents: int
    """Documents in it."""

    tokens: int
    """Tokens in it, the 0 at the end of each document included."""


class Manifest(Config):
    """How an output came about. The same inputs and recipe give the same manifest."""

    format: int
    """Version of this file's layout."""

    rwkvkit: str
    """Version of the package that made the output."""

    fingerprint: str
    """Hash of all that the output depends on: recipe, versions, and the inputs' contents."""

    prepare: list[StageRecord]
    """The chain of stages."""

    seed: int | None
    """Seed of shuffle, fractions and split; null if there was none of them."""

    ctx_len: int | None
    """The ctx_len that was planned for; null if there was no plan."""

    inputs: list[InputRecord]
    """Every file that was read, in order."""

    documents_in: int
    """Documents read that no filter dropped, those outside their source's fraction included."""

    documents: int
    """Documents written, repetitions counted."""

    tokens: int
    """Tokens written, the 0 at the end of each document included."""

    rejected: int
    """Lines that were skipped."""

    filtered: int
    """Documents that filters dropped."""

    left_out: int
    """Documents outside the fraction of their source."""

    duplicates: int
    """Documents dropped because their content stood before."""

    validation: Counts | None
    """What went to PREFIX-val, if the chain splits."""

    outputs: list[OutputRecord]
    """The files that were written, this one excepted."""

    plan: PlanResult | None
    """Magic prime and exit tokens, if the chain plans."""

    plans: list[PlanResult]
    """The same for the usual ctx_lens that the corpus is large enough for."""

    sha256: str | None = None
    """Hash of all the other fields; null in the manifests of versions that made none."""

    @model_validator(mode="after")
    def _encodes_once(self) -> "Manifest":
        if sum(record.stage == "encode" for record in self.prepare) != 1:
            raise ValueError("a chain has one encode stage")
        return self


def manifest_path(prefix: Path) -> Path:
    """Return where the manifest of an output lies."""
    return prefix.parent / (prefix.name + SUFFIX)


def write_manifest(prefix: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of an output; return it as it is written, with its hash."""
    facts = manifest.model_dump(mode="json")
    facts["sha256"] = _hash(facts)
    content = json.dumps(facts, indent=1, ensure_ascii=False)
    files.write_text(manifest_path(prefix), content + "\n")
    return manifest.model_copy(update={"sha256": facts["sha256"]})


def read_manifest(prefix: str | Path) -> Manifest | None:
    """Return the manifest of an output, or None if it has none.

    Raises:
        DataError: the manifest is damaged, not to be read, or of another version of rwkvkit.
    """
    path = manifest_path(Path(prefix))
    try:
        content = path.read_bytes()
        manifest = Manifest.model_validate_json(content)
        if manifest.sha256 is not None and manifest.sha256 != _hash(json.loads(content)):
            raise ValueError("it has another hash")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"the manifest cannot be read: {error.strerror}",
            where=str(path),
            hint="check its permissions",
        ) from error
    except ValueError as error:
        raise DataError(
            "the manifest cannot be read: damaged, or of another version of rwkvkit",
            where=str(path),
            hint="build the output again",
        ) from error
    return manifest


def digest(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of facts that JSON can hold, in whatever order they are."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _hash(facts: dict[str, Any]) -> str:
    """Return a hash of the fields of a manifest, its own hash left out."""
    return digest({key: value for key, value in facts.items() if key != "sha256"})


def records(stages: Iterable[Stage]) -> list[StageRecord]:
    """Return stages as they are recorded."""
    return [
        StageRecord(stage=stage.key, version=stage.version, settings=stage.settings())
        for stage in stages
    ]


def fingerprint(
    prepare: Sequence[StageRecord],
    seed: int | None,
    ctx_len: int | None,
    inputs: Sequence[InputRecord],
    *,
    layout: int = FORMAT,
    version: str = rwkvkit.__version__,
) -> str:
    """Return a hash of all that an output depends on; the same on every machine.

    Args:
        prepare: the chain.
        seed: of what is drawn, or None.
        ctx_len: that is planned for, or None.
        inputs: what is read.
        layout: the format of the manifest.
        version: of rwkvkit.
    """
    facts = {
        "format": layout,
        "rwkvkit": version,
        "prepare": [record.model_dump(mode="json") for record in prepare],
        "seed": seed,
        "ctx_len": ctx_len,
        "inputs": [record.model_dump(mode="json", exclude={"tag"}) for record in inputs],
    }
    return digest(facts)


def recipe_change(
    old: Manifest, prepare: Sequence[StageRecord], seed: int | None, ctx_len: int | None
) -> str | None:
    """Say what differs from the recipe that made an output, or return None."""
    before, after = [r.stage for r in old.prepare], [r.stage for r in prepare]
    if before != after:
        return f"stages {', '.join(before)} -> {', '.join(after)}"
    for was, now in zip(old.prepare, prepare, strict=True):
        if was.version != now.version:
            return f"{now.stage} is version {now.version}, was {was.version}"
        if changes := differences(was.settings, now.settings):
            return changes[0]
    if old.seed != seed:
        return f"seed {_word(old.seed)} -> {_word(seed)}"
    if old.ctx_len != ctx_len:
        return f"ctx_len {_word(old.ctx_len)} -> {_word(ctx_len)}"
    return None


def input_change(
    old: Manifest, inputs: Sequence[InputFile], read_ns: int, seen: States
) -> str | None:
    """Say which input differs from what was read, or return None.

    A file in the state that it was seen in, or of the same size that its server calls by the same
    tag or changed last before the build had read all, is taken as unchanged; any other is hashed.

    Args:
        old: how the output came about.
        inputs: the files, as they are now.
        read_ns: when the build had read all, in nanoseconds since 1970.
        seen: in which state this machine saw files; those that were hashed and found unchanged
            come to it.

    Raises:
        DataError: a file cannot be read.
    """
    known = {record.path: record for record in old.inputs}
    for file in inputs:
        record = known.get(file.name)
        if record is None:
            return f"input {file.name} is new"
        if record.bytes != file.size or not _unchanged(file, record, read_ns, seen):
            return f"input {file.name} changed"
    gone = known.keys() - {file.name for file in inputs}
    if gone:
        return f"input {min(gone)} is gone"
    if [file.name for file in inputs] != [record.path for record in old.inputs]:
        return "the inputs are in another order"
    return None


def _unchanged(file: InputFile, record: InputRecord, read_ns: int, seen: States) -> bool:
    if file.tag is not None and file.tag == record.tag:
        return True
    state = file.state()
    if state and seen.get(file.name) == list(state):
        return True
    if file.unchanged_since(read_ns):
        return True
    now = states([file], time.time_ns() - _TICK_NS)
    if hash_file(file) != record.sha256:
        return False
    seen |= now
    return True


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
