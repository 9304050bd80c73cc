"""``train_log.txt``, as the reference trainer writes it: a line each mini-epoch."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rwkvkit.files import naming, write_text
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.observe import END_EARLY, StepReport
from rwkvkit.train.sampler import MINI_EPOCH_SAMPLES


class TrainLog:
    """A sink that appends a line when a mini-epoch ends, and at the end of the run.

    Columns as in the reference: mini-epoch from 0, mean loss, its exponential, learning rate, local
    date and time, mini-epochs since the process started. A process starts with ``NEW RUN``, its
    time, and the settings on a line. The lines of steps that are taken again are replaced.

    Args:
        path: the file.
        metrics: the run's ``metrics.jsonl``, from which the losses before a resume are read.
        settings: what the second line holds.
        global_batch: samples a step.
    """

    def __init__(
        self, path: Path, metrics: Path, settings: Mapping[str, Any], global_batch: int
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._settings = dict(settings)
        self._batch = global_batch
        self._first: int | None = None
        self._losses: list[float] = []

    def __call__(self, now: StepReport) -> None:
        """Take the report of a step."""
        epoch = self._epoch(now.step)
        if self._first is None:
            self._first = epoch
            self._begin(epoch)
            before = (row for row in read_metrics(self._metrics) if row["step"] < now.step)
            kept = [row["loss"] for row in before if self._epoch(row["step"]) == epoch]
            self._losses = [loss for loss in kept if loss is not None]
        if math.isfinite(now.loss):
            self._losses.append(now.loss)
        ended = now.step == now.steps or END_EARLY in now.found
        if ended or self._epoch(now.step + 1) > epoch:
            mean = sum(self._losses) / len(self._losses) if self._losses else math.nan
            self._append(
                f"{epoch} {mean:.6f} {math.exp(min(mean, 700)):.4f} {now.lr:.8f} "
                f"{datetime.now()} {epoch - self._first}\n"
            )
            self._losses = []

    def _epoch(self, step: int) -> int:
        """The mini-epoch in which a step (from 1) begins."""
        return (step - 1) * self._batch // MINI_EPOCH_SAMPLES

    def _begin(self, epoch: int) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [
            line
            for line in lines
            if not (found := re.match(r"(\d+) \S+ \S+ \S+ ", line)) or int(found[1]) < epoch
        ]
        kept += [f"NEW RUN {datetime.now():%Y-%m-%d-%H-%M-%S}", repr(self._settings)]
        write_text(self._path, "".join(line + "\n" for line in kept))

    def _append(self, line: str) -> None:
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
