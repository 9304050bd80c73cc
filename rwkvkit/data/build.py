"""From a chain of stages to files: ``Build`` runs the data half of a recipe, left to right."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rwkvkit
from rwkvkit import files
from rwkvkit.data import manifest as manifests
from rwkvkit.data.binidx import BinidxWriter, bin_path
from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.chunks import CHUNK_BYTES, changed, hash_file
from rwkvkit.data.corpus import Corpus
from rwkvkit.data.encoding import Run, TaskWork, encode_tasks, placed_rejects, run_local, writing
from rwkvkit.data.manifest import Counts, FileRecord, Manifest, manifest_path
from rwkvkit.data.parts import Part
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.selection import Rules, Selection
from rwkvkit.data.shards import Shard, check_complete, note_count
from rwkvkit.data.sources import InputFile
from rwkvkit.data.stages import (
    Dedup,
    Encode,
    Plan,
    PlanResult,
    Read,
    RepeatShuffle,
    Split,
    Stage,
    WriteBinidx,
    check_chain,
)
from rwkvkit.data.tasks import Task, make_tasks
from rwkvkit.data.workspace import publish, shared_workspace, workspace
from rwkvkit.data.writing import CorpusWriter, Order, count_output
from rwkvkit.errors import DataError

MEMORY = 2 << 30
"""Bytes that the data of a build may take in memory, unless told otherwise."""

REJECTS = ".rejects.jsonl"
VALIDATION = "-val"
_PAIR = (".bin", ".idx", ".mask")
_SUFFIXES = (*_PAIR, *(VALIDATION + suffix for suffix in _PAIR), REJECTS, manifests.SUFFIX)
_SMALL = 64 << 20  # input bytes that this process encodes before workers would have started
_EXPANSION = 4  # how much compressed text counts for more than its size
_USUAL_CTX_LENS = (512, 1024, 2048, 4096, 8192, 16384)
_S = TypeVar("_S", bound=Stage)

__all__ = ["MEMORY", "Build", "Progress", "Status"]


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
        vocab: the vocabulary file that the recipe names, if it does.

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
        self.vocab = (_stage(stages, Encode) or _missing()).vocab
        self._repeat = _stage(stages, RepeatShuffle) or RepeatShuffle(shuffle=False)
        self._plan = _stage(stages, Plan)
        self._ctx_len = ctx_len if self._plan else None
        split = _stage(stages, Split)
        own = self._repeat.seed
        self._rules = Rules(
            seed=seed if own is None else own,
            fractions=[source.fraction for source in self._read.sources],
            dedup=_stage(stages, Dedup) is not None,
            validation=split.validation if split else 0.0,
        )
        seeded = self._repeat.shuffle or split or min(self._rules.fractions) < 1
        self._seed = self._rules.seed if seeded else None
        # The prefix may carry .bin or .idx, as everywhere.
        prefix = (_stage(stages, WriteBinidx) or _missing()).prefix
        self.prefix = bin_path(prefix).with_suffix("")
        self._chunk_bytes = CHUNK_BYTES
        self._task_bytes: int | None = None

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
        built_ns = manifest_path(self.prefix).stat().st_mtime_ns
        change = manifests.recipe_change(
            old, self._records(), self._seed, self._ctx_len
        ) or manifests.input_change(old, self._inputs(), built_ns)
        return Status(False, change) if change else Status(True, "recipe and inputs unchanged")

    def fingerprint(self) -> str:
        """Return a hash of all that the output depends on; it reads every input through.

        Raises:
            DataError: the inputs cannot be found or read.
        """
        inputs = [
            FileRecord(path=file.name, bytes=file.size, sha256=hash_file(file))
            for file in self._inputs()
        ]
        return manifests.fingerprint(self._records(), self._seed, self._ctx_len, inputs)

    def run(
        self,
        *,
        workers: int | None = None,
        memory: int = MEMORY,
        merge: bool = False,
        executor: Run | None = None,
        progress: Report | None = None,
    ) -> Manifest:
        """Build the output, whether it is up to date or not.

        A build that was stopped, by whatever, goes on where it stood.

        Args:
            workers: processes; by default one a core, or none but this one if there is little to
                do. With several, a script must call this under ``if __name__ == "__main__"``.
            memory: bytes that the index of the documents and their tokens may take while they are
                put in order. The output does not depend on it.
            merge: refuse to start unless shards have made every part.
            executor: runs the tasks elsewhere, such as ``ray_run.run_ray()``.
            progress: called several times a second.

        Returns:
            The manifest, which also lies beside the output.

        Raises:
            DataError: an input is missing, unreadable or wrong, with file and line; no document at
                all; the corpus too small for ctx_len.
            SetupError: the output cannot be written.
            UsageError: parts are missing at a merge.
        """
        inputs = self._inputs()
        count = workers or _default_workers(inputs)
        report = progress or (lambda _: None)
        tasks = make_tasks(inputs, self._task_bytes)
        before = [file.touched() for file in inputs]
        # Loaded first, so that what is wrong with a vocabulary is said before any work.
        self._work.load()
        fingerprint = self._work_fingerprint(inputs, tasks, before)
        with writing(self.prefix), workspace(self.prefix, fingerprint) as folder:
            if merge:
                check_complete(folder, tasks)
            work = self._task_work(folder)
            parts = encode_tasks(tasks, work, run=executor or run_local(count), report=report)
            _check_unchanged(inputs, before)
            manifest = self._finish(folder, inputs, tasks, parts, memory, count, report)
            publish(folder, self.prefix, _SUFFIXES)
        return manifest

    def run_shard(
        self, shard: Shard, *, workers: int | None = None, progress: Report | None = None
    ) -> int:
        """Make one shard's parts of the output; ``run`` finishes when all are there.

        Several shards may run at once, on machines that share the folder of the output.

        Args:
            shard: which tasks to do.
            workers: processes; as in ``run``.
            progress: called several times a second.

        Returns:
            The number of parts.

        Raises:
            DataError: an input is missing, unreadable or wrong, with file and line.
            SetupError: the parts cannot be written, or a build runs that is no shard.
        """
        inputs = self._inputs()
        tasks = make_tasks(inputs, self._task_bytes)
        own = [task for task in tasks if shard.owns(task)]
        before = [file.touched() for file in inputs]
        self._work.load()
        count = workers or _default_workers(inputs)
        fingerprint = self._work_fingerprint(inputs, tasks, before)
        with writing(self.prefix), shared_workspace(self.prefix, fingerprint) as folder:
            note_count(folder, shard)
            work = self._task_work(folder)
            encode_tasks(own, work, run=run_local(count), report=progress or (lambda _: None))
            _check_unchanged(inputs, before)
        return len(own)

    def _task_work(self, folder: Path) -> TaskWork:
        return TaskWork(self._work, folder, self._chunk_bytes, self._rules.need_hashes)

    def _work_fingerprint(
        self, inputs: list[InputFile], tasks: list[Task], touched: list[tuple[int, int | str]]
    ) -> str:
        """Return a hash of what the parts of this build depend on, the inputs' times included."""
        facts = {
            "rwkvkit": rwkvkit.__version__,
            "prepare": [record.model_dump(mode="json") for record in self._records()],
            "hashed": self._rules.need_hashes,
            "tasks": [(task.first_file, task.start, task.stop) for task in tasks],
            "inputs": [
                (file.name, file.source, *when) for file, when in zip(inputs, touched, strict=True)
            ],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _records(self) -> list[manifests.StageRecord]:
        return manifests.records(self._stages)

    def _finish(
        self,
        folder: Path,
        inputs: list[InputFile],
        tasks: list[Task],
        parts: list[Part],
        memory: int,
        threads: int,
        report: Report,
    ) -> Manifest:
        """Write the outputs and the manifest into the folder of the build."""
        corpus = Corpus(tasks, parts, inputs)
        rejected = sum(part.record.rejected for part in parts)
        filtered = sum(part.record.filtered for part in parts)
        if not corpus.n_documents:
            raise self._empty(rejected, filtered)
        selection = Selection(corpus, self._rules, folder, memory // 2)
        order = self._order()
        n_documents, n_tokens = count_output(selection, order)
        if not n_documents:
            raise DataError(
                "no document is left for training",
                where=str(self.prefix),
                hint="a larger fraction, or a smaller share for validation, leaves some",
            )
        plan = self._planned(n_tokens)
        name = self.prefix.name
        writer = CorpusWriter(
            corpus, selection, folder, memory=memory, threads=threads, report=report
        )
        written = writer.write(folder / name, order)
        outputs = self._records_of(folder, "", written)
        validation: BinidxWriter | None = None
        if self._rules.validation:
            validation = writer.write_validation(folder / (name + VALIDATION))
            outputs += self._records_of(folder, VALIDATION, validation)
        if rejected:
            outputs.append(self._write_rejects(folder, inputs, tasks, parts))
        hashes = {int(i): sha for part in parts for i, sha in part.record.inputs.items()}
        read = [
            FileRecord(path=file.name, bytes=file.size, sha256=hashes[i])
            for i, file in enumerate(inputs)
        ]
        records = self._records()
        manifest = Manifest(
            format=manifests.FORMAT,
            rwkvkit=rwkvkit.__version__,
            fingerprint=manifests.fingerprint(records, self._seed, self._ctx_len, read),
            prepare=records,
            seed=self._seed,
            ctx_len=self._ctx_len,
            inputs=read,
            documents_in=corpus.n_documents,
            documents=written.n_documents,
            tokens=written.n_tokens,
            rejected=rejected,
            filtered=filtered,
            left_out=selection.left_out,
            duplicates=selection.duplicates,
            validation=Counts(documents=validation.n_documents, tokens=validation.n_tokens)
            if validation
            else None,
            outputs=outputs,
            plan=plan,
            plans=self._usual_plans(written.n_tokens),
        )
        manifests.write_manifest(folder / name, manifest)
        return manifest

    def _order(self) -> Order:
        shuffle = self._repeat.shuffle
        return Order(
            repeats=[source.repeat for source in self._read.sources],
            epochs=self._repeat.epochs,
            shuffle="reference" if shuffle == "reference" else "keys" if shuffle else None,
            seed=self._rules.seed,
        )

    def _inputs(self) -> list[InputFile]:
        own = {os.path.realpath(f"{self.prefix}{suffix}") for suffix in _SUFFIXES}
        return self._read.files(exclude=own)

    def _write_rejects(
        self, folder: Path, inputs: list[InputFile], tasks: list[Task], parts: list[Part]
    ) -> FileRecord:
        path = folder / (self.prefix.name + REJECTS)
        with path.open("w", encoding="utf-8") as lines:
            for file, reject in placed_rejects(tasks, parts, inputs):
                line = {
                    "file": file.name,
                    "line": reject.line,
                    "reason": reject.reason,
                    "raw": reject.raw,
                }
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        return self._record(folder, REJECTS, files.sha256(path))

    def _records_of(self, folder: Path, name: str, written: BinidxWriter) -> list[FileRecord]:
        hashes = (written.bin_sha256, written.idx_sha256, written.mask_sha256)
        return [
            self._record(folder, name + suffix, sha256)
            for suffix, sha256 in zip(_PAIR, hashes, strict=True)
            if sha256
        ]

    def _record(self, folder: Path, suffix: str, sha256: str) -> FileRecord:
        path = folder / (self.prefix.name + suffix)
        return FileRecord(path=path.name, bytes=path.stat().st_size, sha256=sha256)

    def _empty(self, rejected: int, filtered: int) -> DataError:
        why = [f"{rejected} lines were rejected"] if rejected else []
        why += [f"{filtered} documents were filtered out"] if filtered else []
        return DataError(
            "the input holds no document",
            where=", ".join(s.name for s in self._read.sources),
            hint=" and ".join(why) or "every line is blank",
        )

    def _planned(self, n_tokens: int) -> PlanResult | None:
        if self._plan is None or self._ctx_len is None:
            return None
        return self._plan.plan(n_tokens, self._ctx_len)

    def _usual_plans(self, n_tokens: int) -> list[PlanResult]:
        plans = []
        if self._plan:
            for ctx_len in _USUAL_CTX_LENS:
                with contextlib.suppress(DataError):  # the corpus is too small for it
                    plans.append(self._plan.plan(n_tokens, ctx_len))
        return plans


def _stage(stages: Sequence[Stage], kind: type[_S]) -> _S | None:
    return next((stage for stage in stages if isinstance(stage, kind)), None)


def _missing() -> Any:
    raise AssertionError("check_chain lets no such chain pass")


def _check_unchanged(inputs: list[InputFile], before: list[tuple[int, int | str]]) -> None:
    for file, was in zip(inputs, before, strict=True):
        if file.touched() != was or was[0] != file.size:
            raise changed(file)


def _default_workers(inputs: list[InputFile]) -> int:
    if any(file.dataset for file in inputs):
        return os.cpu_count() or 1
    work = sum(file.size * (_EXPANSION if file.compression else 1) for file in inputs)
    return 1 if work < _SMALL else os.cpu_count() or 1
