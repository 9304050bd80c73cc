"""What rwkvkit has to work with: the files that ship with it, and the cores it may use."""

import os
from importlib.resources import files
from pathlib import Path


def bundled(folder: str) -> Path:
    """Return a bundled top-level folder (``pipelines``, ``configs`` or ``kernels``).

    An installed wheel holds them under ``rwkvkit/_data``; a checkout has them beside the package.
    """
    package = Path(str(files("rwkvkit")))
    installed = package / "_data" / folder
    return installed if installed.is_dir() else package.parent / folder


def cores() -> int:
    """Return how many cores this process may run on, which a scheduler may have made a few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
