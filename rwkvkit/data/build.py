"""From a chain of stages to files: ``Build`` runs the data half of a recipe, left to right."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rwkvkit
from rwkvkit.data import card, remote
from rwkvkit.data import manifest as manifests
from rwkvkit.data.binidx import bin_path
from rwkvkit.data.chain import Chain
from rwkvkit.data.chunks import CHUNK_BYTES, changed, hash_file
from rwkvkit.data.encoding import Run, TaskWork, encode_tasks, run_local, writing
from rwkvkit.data.finding import source_line
from rwkvkit.data.finish import SUFFIXES, finish
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.manifest import InputRecord, Manifest, manifest_path
from rwkvkit.data.place import check_place, output_names, publish
from rwkvkit.data.process import shared_interpreter
from rwkvkit.data.progress import Report
from rwkvkit.data.seen import read_seen, states, write_seen
from rwkvkit.data.shards import Shard, check_complete, note_count
from rwkvkit.data.stages import Stage
from rwkvkit.data.tasks import Task, make_tasks, n_workers
from rwkvkit.data.workspace import shared_workspace, workspace
from rwkvkit.errors import DataError, UsageError

MEMORY = 2 << 30
"""Bytes that the data of a build may take in memory, unless told otherwise."""

LEAST_MEMORY = 1 << 10
"""The least bytes that make sense for it."""


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
        encode: the stage that knows the tokenizer.

    Args:
        stages: the chain, in the order of the recipe.
        seed: for the shuffle, where its stage has none of its own.
        ctx_len: tokens in a training sample, for the plan.

    Raises:
        RecipeError: a stage does not find before it what it needs.
    """

    def __init__(self, stages: Sequence[Stage], *, seed: int, ctx_len: int) -> None:
        self._chain = Chain(stages, seed=seed, ctx_len=ctx_len)
        self.prefix = self._chain.prefix
        self.encode = self._chain.encode
        self._chunk_bytes = CHUNK_BYTES
        self._task_bytes: int | None = None

    def describe(self) -> list[str]:
        """Return the resolved chain, a line a stage and a line a source; touches nothing.

        Raises:
            DataError: no file matches a source.
            RecipeError: the format of a file must be told, or the output would overwrite another
                dataset.
        """
        self._check_place()
        return [*self._chain.summaries(output_names(self._chain)), *self.source_lines()]

    def source_lines(self) -> list[str]:
        """Return a line a source: which files it is, and which of a folder it is not.

        Raises:
            DataError: no file matches a source.
            RecipeError: the format of a file must be told.
        """
        skipped: dict[int, list[str]] = {}
        inputs = self._inputs(skipped)
        lines = []
        for number, source in enumerate(self._chain.read.sources):
            own = [file for file in inputs if file.source == number]
            times = source.repeat * self._chain.repeat.epochs
            lines.append(source_line(source, own, skipped.get(number, []), times))
        return lines

    def status(self, *, keep: bool = False) -> Status:
        """Say whether the output is up to date, or what has changed.

        Args:
            keep: leave word beside the output of inputs that had to be hashed, for the next time.

        Raises:
            DataError: the inputs cannot be found or read.
        """
        try:
            old = manifests.read_manifest(self.prefix)
        except DataError as error:
            return Status(False, error.what)
        if old is None:
            there = bin_path(self.prefix).exists()
            return Status(
                False, "the output has no manifest" if there else "there is no output yet"
            )
        for output in old.outputs:
            path = self.prefix.with_name(output.path)
            if not path.is_file():
                return Status(False, f"output {path} is gone")
            if path.stat().st_size != output.bytes:
                return Status(False, f"output {path} has another size")
        read_ns = manifest_path(self.prefix).stat().st_mtime_ns
        change = manifests.recipe_change(
            old, self._chain.records(), self._chain.seed, self._chain.ctx_len
        )
        if not change:
            known = read_seen(self.prefix, old.fingerprint)
            seen = dict(known)
            change = manifests.input_change(old, self._inputs(), read_ns, seen)
            if keep and seen != known:
                write_seen(self.prefix, old.fingerprint, seen)
        return Status(False, change) if change else Status(True, "recipe and inputs unchanged")

    def fingerprint(self) -> str:
        """Return a hash of all that the output depends on; it reads every input through.

        Raises:
            DataError: the inputs cannot be found or read.
        """
        inputs = [
            InputRecord(path=file.name, bytes=file.size, sha256=hash_file(file))
            for file in self._inputs()
        ]
        return manifests.fingerprint(
            self._chain.records(), self._chain.seed, self._chain.ctx_len, inputs
        )

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
            RecipeError: the output would overwrite another dataset.
            SetupError: the output cannot be written.
            UsageError: parts are missing at a merge; workers below 1, or memory below 1 KiB.
        """
        if memory < LEAST_MEMORY:
            raise UsageError(
                f"too little memory for a build: {memory} bytes",
                hint=f"it takes {LEAST_MEMORY:,} bytes at least; {MEMORY:,} unless told otherwise",
            )
        self._check_place()
        inputs = self._inputs()
        count = n_workers(workers, inputs)
        report = progress or (lambda _: None)
        tasks = make_tasks(inputs, self._task_bytes)
        before = [file.touched() for file in inputs]
        # Loaded first, so that what is wrong with a vocabulary is said before any work.
        self._chain.work.load()
        records = self._chain.records()
        fingerprint = self._work_fingerprint(inputs, tasks, before)
        with (
            writing(self.prefix),
            shared_interpreter(),
            workspace(self.prefix, fingerprint) as folder,
        ):
            if merge:
                check_complete(folder, tasks)
            work = self._task_work(folder)
            parts = encode_tasks(tasks, work, run=executor or run_local(count), report=report)
            made = manifest_path(folder / self.prefix.name)
            made.touch()
            read_ns = made.stat().st_mtime_ns
            seen = states(inputs, read_ns)
            _check_unchanged(inputs, before)
            manifest = finish(self._chain, folder, inputs, tasks, parts, memory, count, report)
            if manifest.prepare != records:
                raise DataError(
                    "the vocabulary, or a file of another stage, changed while the build ran",
                    where=self.encode.file or self.encode.tokenizer,
                    hint="run it again",
                )
            # Writing may take hours; an input that changed meanwhile is to be newer than this.
            os.utime(made, ns=(read_ns, read_ns))
            publish(folder, self.prefix)
            write_seen(self.prefix, manifest.fingerprint, seen)
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
            RecipeError: the output would overwrite another dataset.
            SetupError: the parts cannot be written, or a build runs that is no shard.
            UsageError: workers below 1.
        """
        self._check_place()
        inputs = self._inputs()
        tasks = make_tasks(inputs, self._task_bytes)
        own = [task for task in tasks if shard.owns(task)]
        before = [file.touched() for file in inputs]
        self._chain.work.load()
        count = n_workers(workers, inputs)
        fingerprint = self._work_fingerprint(inputs, tasks, before)
        with (
            writing(self.prefix),
            shared_interpreter(),
            shared_workspace(self.prefix, fingerprint) as folder,
        ):
            note_count(folder, shard)
            work = self._task_work(folder)
            encode_tasks(own, work, run=run_local(count), report=progress or (lambda _: None))
            _check_unchanged(inputs, before)
        return len(own)

    def _check_place(self) -> None:
        check_place(self.prefix, splits=self._chain.rules.validation > 0)

    def _task_work(self, folder: Path) -> TaskWork:
        return TaskWork(self._chain.work, folder, self._chunk_bytes, self._chain.rules.need_hashes)

    def _work_fingerprint(
        self, inputs: list[InputFile], tasks: list[Task], touched: list[tuple[int, str]]
    ) -> str:
        """Return a hash of what the parts of this build depend on, the inputs' times included."""
        facts = {
            "rwkvkit": rwkvkit.__version__,
            "prepare": [record.model_dump(mode="json") for record in self._chain.records()],
            "hashed": self._chain.rules.need_hashes,
            "seed": self._chain.rules.seed if self._chain.sampled else None,
            "tasks": [(task.first_file, task.start, task.stop) for task in tasks],
            "inputs": [
                (file.name, file.source, *when) for file, when in zip(inputs, touched, strict=True)
            ],
        }
        return manifests.digest(facts)

    def _inputs(self, skipped: dict[int, list[str]] | None = None) -> list[InputFile]:
        suffixes = (*SUFFIXES, card.SUFFIX, card.PLOT_SUFFIX)
        own = {os.path.realpath(f"{self.prefix}{suffix}") for suffix in suffixes}
        return self._chain.read.files(own, skipped)


def _check_unchanged(inputs: list[InputFile], before: list[tuple[int, str]]) -> None:
    remote.forget_listings(file.path for file in inputs if remote.is_remote(file.path))
    for file, was in zip(inputs, before, strict=True):
        if file.touched() != was or was[0] != file.size:
            raise changed(file)
