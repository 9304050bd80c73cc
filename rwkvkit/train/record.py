"""The record of what a run is, so that a resume never mixes two runs."""

import json
from pathlib import Path
from typing import Any

from rwkvkit.compare import differences
from rwkvkit.errors import RecipeError
from rwkvkit.files import write_text

NAME = "run.json"


def check_record(folder: Path, record: dict[str, Any]) -> None:
    """Compare ``record`` with the one in a run's folder.

    Args:
        folder: the run's folder; it may not exist.
        record: what decides the weights a run ends with, by section; sections left out are not
            compared.

    Raises:
        RecipeError: the folder holds another run; every difference is named.
    """
    path = folder / NAME
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    known = {section: value for section, value in before.items() if section in record}
    changes = differences(known, record)
    if changes:
        raise RecipeError(
            f"this folder holds another run ({', '.join(changes)})",
            where=str(folder),
            hint="give this run another name or run_dir, or undo the change to resume that run",
        )


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    write_text(folder / NAME, json.dumps(record, indent=1, sort_keys=True) + "\n")
