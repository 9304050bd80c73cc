"""Where the weights are that a path stands for."""

from collections.abc import Callable
from pathlib import Path

from rwkvkit.errors import DataError
from rwkvkit.train.checkpoints import CheckpointStore
from rwkvkit.train.loop import RunFiles
from rwkvkit.train.portion import MODEL_FILE


def checkpoint_file(source: Path, report: Callable[[str], None]) -> Path:
    """Return the file with the weights of a whole model.

    Args:
        source: a run's folder (its final weights, or those of its newest whole checkpoint), the
            folder of a checkpoint, or the file itself, whether it is there or not.
        report: takes a line about each damaged checkpoint that is passed over.

    Raises:
        DataError: the folder has no such file.
    """
    if not source.is_dir():
        return source
    files = RunFiles(source)
    for file in (source / MODEL_FILE, files.final):
        if file.exists():
            return file
    newest = CheckpointStore(files.checkpoints, keep=1).newest(report)
    if newest is None or not (newest.folder / MODEL_FILE).exists():
        raise DataError(
            "holds no weights of a whole model",
            where=str(source),
            hint="give a run's folder, a checkpoint's, or a .pth file; rwkvkit merge makes "
            "whole weights of an adapter",
        )
    return newest.folder / MODEL_FILE
