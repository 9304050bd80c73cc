"""From a chain of stages to files: ``Build`` runs the data half of a recipe, left to right."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rwkvkit
from rwkvkit import files
from rwkvkit.data import manifest as manifests
from rwkvkit.data.binidx import BinidxWriter, bin_path, idx_path, mask_path
from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.chunks import CHUNK_BYTES, ChunkReader
from rwkvkit.data.documents import Reject, changed
from rwkvkit.data.encoding import encode_corpus, writing
from rwkvkit.data.manifest import FileRecord, Manifest, manifest_path
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.sources import InputFile
from rwkvkit.data.stages import (
    Plan,
    PlanResult,
    Read,
    RepeatShuffle,
    Stage,
    WriteBinidx,
    check_chain,
)
from rwkvkit.data.workspace import publish, workspace
from rwkvkit.data.writing import count_tokens, write_corpus
from rwkvkit.errors import DataError

REJECTS = ".rejects.jsonl"
_SUFFIXES = (".bin", ".idx", ".mask", REJECTS, manifests.SUFFIX)
_SMALL = 64 << 20  # input bytes that this process encodes before workers would have started
_EXPANSION = 4  # how much compressed text counts for more than its size
_S = TypeVar("_S", bound=Stage)

__all__ = ["Build", "Progress", "Status"]


@dataclass(frozen=True)
class Status:
    """Whether an output is what the recipe asks for, and why (not)."""

    up_to_date: bool
    reason: str


class Build:
    """The data half of a recipe: reads, encodes, orders, writes and plans.

    The output is the same for any number of workers. It appears whole or not at all; a good
    output that is there already survives a build that fails.

    Attributes:
        prefix: path of the output, without suffix.

    Args:
        stages: the chain, in the order of the recipe.
        seed: for the shuffle, where its stage has none of its own.
        ctx_len: tokens in a training sample, for the plan.

    Raises:
        RecipeError: a stage does not find before it what it needs.
    """

    def __init__(self, stages: Sequence[Stage], *, seed: int, ctx_len: int) -> None:
        check_chain(stages)
        self._stages = tuple(stages)
        self._read = _stage(stages, Read) or _missing()
        self._work = ChunkWork(stages)
        self._repeat = _stage(stages, RepeatShuffle) or RepeatShuffle(shuffle=False)
        self._plan = _stage(stages, Plan)
        self._ctx_len = ctx_len if self._plan else None
        own = self._repeat.seed
        self._seed = (seed if own is None else own) if self._repeat.shuffle else None
        # The prefix may carry .bin or .idx, as everywhere.
        prefix = (_stage(stages, WriteBinidx) or _missing()).prefix
        self.prefix = bin_path(prefix).with_suffix("")
        self._chunk_bytes = CHUNK_BYTES

    def describe(self) -> list[str]:
        """Return the resolved chain, a line a stage and a line a source; touches nothing.

        Raises:
            DataError: no file matches a source.
            RecipeError: the format of a file must be told.
        """
        inputs = self._inputs()
        lines = [f"{stage.key}: {stage.summary()}" for stage in self._stages]
        for number, source in enumerate(self._read.sources):
            own = [file for file in inputs if file.source == number]
            size = sum(file.size for file in own)
            name = source.name
            lines.append(
                f"source {name}: {len(own)} {'file' if len(own) == 1 else 'files'}, "
                f"{size:,} bytes, x{source.repeat * self._repeat.epochs}"
            )
        return lines

    def status(self) -> Status:
        """Say whether the output is up to date, or what has changed.

        Raises:
            DataError: the inputs cannot be found or read.
        """
        try:
            old = manifests.read_manifest(self.prefix)
        except DataError as error:
            return Status(False, error.what)
        if old is None:
            there = bin_path(self.prefix).exists()
            return Status(False, "the output has no manifest" if there else "no output yet")
        for output in old.outputs:
            path = self.prefix.with_name(output.path)
            if not path.is_file():
                return Status(False, f"output {path} is gone")
            if path.stat().st_size != output.bytes:
                return Status(False, f"output {path} has another size")
        prepare = manifests.records(self._stages)
        built_ns = manifest_path(self.prefix).stat().st_mtime_ns
        change = manifests.recipe_change(
            old, prepare, self._seed, self._ctx_len
        ) or manifests.input_change(old, self._inputs(), built_ns)
        return Status(False, change) if change else Status(True, "recipe and inputs unchanged")

    def run(
        self,
        *,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> Manifest:
        """Build the output, whether it is up to date or not.

        Args:
            workers: processes; by default one a core, or none but this one if there is little to
                do. With several, a script must call this under ``if __name__ == "__main__"``.
            progress: called several times a second.

        Returns:
            The manifest, which also lies beside the output.

        Raises:
            DataError: an input is missing, unreadable or wrong, with file and line; no document at
                all; the corpus too small for ctx_len.
            SetupError: the output cannot be written.
        """
        inputs = self._inputs()
        before = [file.touched() for file in inputs]
        repeats = [source.repeat for source in self._read.sources]
        epochs = self._repeat.epochs
        count = workers or _default_workers(inputs)
        report = progress or (lambda _: None)
        # Loaded first, so that what is wrong with a vocabulary is said before any work.
        self._work.load()
        with writing(self.prefix), workspace(self.prefix) as folder:
            reader = ChunkReader(inputs, self._chunk_bytes)
            index, rejects = encode_corpus(reader, self._work, folder, workers=count, report=report)
            for file, was in zip(inputs, before, strict=True):
                if file.touched() != was or was[0] != file.size:
                    raise changed(file)
            if not len(index):
                raise self._empty(len(rejects))
            plan = self._planned(count_tokens(index, repeats, epochs))
            written = write_corpus(
                index,
                folder,
                self.prefix.name,
                workers=count,
                repeats=repeats,
                epochs=epochs,
                seed=self._seed,
                report=report,
                dtype=self._work.dtype,
                masked=self._work.masked,
            )
            if rejects:
                self._write_rejects(folder, rejects, inputs)
            manifest = Manifest(
                format=manifests.FORMAT,
                rwkvkit=rwkvkit.__version__,
                prepare=manifests.records(self._stages),
                seed=self._seed,
                ctx_len=self._ctx_len,
                inputs=[
                    FileRecord(path=file.name, bytes=file.size, sha256=reader.sha256[i])
                    for i, file in enumerate(inputs)
                ],
                documents_in=len(index),
                documents=written.n_documents,
                tokens=written.n_tokens,
                rejected=len(rejects),
                outputs=self._outputs(folder, written),
                plan=plan,
            )
            manifests.write_manifest(folder / self.prefix.name, manifest)
            publish(folder, self.prefix, _SUFFIXES)
        return manifest

    def _inputs(self) -> list[InputFile]:
        own = {os.path.realpath(f"{self.prefix}{suffix}") for suffix in _SUFFIXES}
        return self._read.files(exclude=own)

    def _write_rejects(
        self, folder: Path, rejects: Iterable[Reject], inputs: list[InputFile]
    ) -> None:
        with (folder / (self.prefix.name + REJECTS)).open("w", encoding="utf-8") as file:
            for reject in rejects:
                line = {
                    "file": inputs[reject.file].name,
                    "line": reject.line,
                    "reason": reject.reason,
                    "raw": reject.raw,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _outputs(self, folder: Path, written: BinidxWriter) -> list[FileRecord]:
        name = self.prefix.name
        found = [
            (bin_path(folder / name), written.bin_sha256),
            (idx_path(folder / name), written.idx_sha256),
        ]
        if written.mask_sha256:
            found.append((mask_path(folder / name), written.mask_sha256))
        rejects = folder / (name + REJECTS)
        if rejects.exists():
            found.append((rejects, files.sha256(rejects)))
        return [
            FileRecord(path=path.name, bytes=path.stat().st_size, sha256=sha256)
            for path, sha256 in found
        ]

    def _empty(self, rejected: int) -> DataError:
        return DataError(
            "the input holds no document",
            where=", ".join(s.name for s in self._read.sources),
            hint=f"{rejected} lines were rejected" if rejected else "every line is blank",
        )

    def _planned(self, n_tokens: int) -> PlanResult | None:
        if self._plan is None or self._ctx_len is None:
            return None
        return self._plan.plan(n_tokens, self._ctx_len)


def _stage(stages: Sequence[Stage], kind: type[_S]) -> _S | None:
    return next((stage for stage in stages if isinstance(stage, kind)), None)


def _missing() -> Any:
    raise AssertionError("check_chain lets no such chain pass")


def _default_workers(inputs: list[InputFile]) -> int:
    work = sum(file.size * (_EXPANSION if file.compression else 1) for file in inputs)
    return 1 if work < _SMALL else os.cpu_count() or 1
