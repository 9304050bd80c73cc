"""The record of what a run is, so that a resume never mixes two runs."""

from pathlib import Path
from typing import Any

from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.errors import DataError, RecipeError
from rwkvkit.train.batch import Sampler
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.observe import END_EARLY
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.run_files import RunFiles

RECORD = "run.json"
# Where files are: what is in them has its hash in the record, so they may move.
_PATHS = {"recipe.data", "recipe.model.weights", "recipe.model.grow_from"}


def check_record(folder: Path, record: dict[str, Any]) -> None:
    """Compare ``record`` with the one in a run's folder; files that it names may have moved.

    Args:
        folder: the folder of a run that has started.
        record: what decides the weights a run ends with, by section; sections left out are not
            compared.

    Raises:
        RecipeError: the folder holds another run; every difference is named.
        DataError: the record is missing or damaged.
    """
    path = folder / RECORD
    if not path.exists():
        raise DataError(
            "is gone, and without it nobody knows which run left the weights here",
            where=str(path),
            hint="put it back, or give this run another name or run_dir",
        )
    before = files.read_json(path)
    known = {section: value for section, value in before.items() if section in record}
    if changes := differences(known, record, _PATHS):
        hints = ["give this run another name or run_dir, or undo the change to resume that run"]
        if (final := folder / "rwkv-final.pth").exists():
            hints.append(
                f"to train on from its weights, take another name and `model: {{weights: {final}}}`"
            )
        if any("global_batch" in change for change in changes):
            hints.append(
                "the global batch is train.micro_bsz x train.accumulate_grad_batches x processes"
            )
        raise RecipeError(
            f"this folder holds another run ({', '.join(changes)})",
            where=str(folder),
            hint="; ".join(hints),
        )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in a run's folder, empty if there is none.

    Raises:
        DataError: the record is damaged.
    """
    path = folder / RECORD
    return files.read_json(path) if path.exists() else {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    files.write_json(folder / RECORD, record, sort_keys=True)


def end_of_run(run: RunFiles, plan: TrainPlan, samples: Sampler) -> dict[str, Any]:
    """Return what the record of a complete run says of its end.

    ``step``, ``tokens``, ``loss`` (nats a token; None where ``metrics.jsonl`` was lost), ``sha256``
    of each file of the weights, ``skipped_steps`` if any changed nothing, and ``end_early`` with
    the reason if it ended before its last step.
    """
    rows = read_metrics(run.metrics)
    last = rows[-1] if rows else {}
    step = last["step"] if END_EARLY in last else plan.schedule.steps
    end = {
        "step": step,
        "tokens": samples.tokens(step * plan.global_batch),
        "loss": next((row["loss"] for row in reversed(rows) if row["loss"] is not None), None),
        "sha256": files.hashes(run.final),
    }
    if skipped := last.get("skipped"):
        end["skipped_steps"] = skipped
    return end | {key: last[key] for key in (END_EARLY,) if key in last}
