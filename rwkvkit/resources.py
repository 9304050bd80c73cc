"""Find the files that ship with rwkvkit: recipes, model sizes, kernels."""

from importlib.resources import files
from pathlib import Path


def bundled(folder: str) -> Path:
    """Return a bundled top-level folder (``pipelines``, ``configs`` or ``kernels``).

    An installed wheel holds them under ``rwkvkit/_data``; a checkout has them beside the package.
    """
    package = Path(str(files("rwkvkit")))
    installed = package / "_data" / folder
    return installed if installed.is_dir() else package.parent / folder
