"""The record of what a run is, so that a resume never mixes two runs."""

import json
from pathlib import Path
from typing import Any

from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.errors import DataError, RecipeError

NAME = "run.json"


def check_record(folder: Path, record: dict[str, Any]) -> None:
    """Compare ``record`` with the one in a run's folder.

    Args:
        folder: the folder of a run that has started.
        record: what decides the weights a run ends with, by section; sections left out are not
            compared.

    Raises:
        RecipeError: the folder holds another run; every difference is named.
        DataError: the record is missing or damaged.
    """
    path = folder / NAME
    if not path.exists():
        raise DataError(
            "is gone, and without it nobody knows which run left the weights here",
            where=str(path),
            hint="put it back, or give this run another name or run_dir",
        )
    before = files.read_json(path)
    known = {section: value for section, value in before.items() if section in record}
    if changes := differences(known, record):
        raise RecipeError(
            f"this folder holds another run ({', '.join(changes)})",
            where=str(folder),
            hint="give this run another name or run_dir, or undo the change to resume that run; "
            "the global batch is train.micro_bsz x train.accumulate_grad_batches x processes",
        )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in a run's folder, empty if there is none.

    Raises:
        DataError: the record is damaged.
    """
    path = folder / NAME
    return files.read_json(path) if path.exists() else {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    files.write_text(folder / NAME, json.dumps(record, indent=1, sort_keys=True) + "\n")
