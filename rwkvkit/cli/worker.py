"""One process of a run that ``rwkvkit train --gpus N`` has started; see ``workflow.launch``."""

import ctypes
import json
import os
import pickle
import signal
import sys
from pathlib import Path

from rwkvkit.cli.boundary import outcome
from rwkvkit.train.place import Place

_PR_SET_PDEATHSIG = 1


def main(launcher: str, errors: str, place: str, *arguments: str) -> None:
    """Run a command as one process of several and exit; an error goes to the launcher.

    Args:
        launcher: process id of the launcher, whose death ends this process.
        errors: the file that takes the error.
        place: fields of ``Place``, as JSON.
        arguments: of the command line.
    """
    die_with(int(launcher))
    error = outcome(arguments, Place(**json.loads(place)))
    if error is not None:
        Path(errors).write_bytes(pickle.dumps(error))
        sys.stderr.flush()
        sys.exit(error.exit_code)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
