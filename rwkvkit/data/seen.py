"""In which state this machine saw the inputs of an output: what need not be hashed again.

The manifest is the same wherever it was made, so this is a hidden file beside it. Where it is not
there, or cannot be written, the inputs are hashed.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from rwkvkit import files
from rwkvkit.data.inputs import InputFile
from rwkvkit.errors import DataError

States = dict[str, list[int]]
"""What ``InputFile.state`` says, by the name of the file."""


def states(inputs: Iterable[InputFile], read_ns: int) -> States:
    """Return the states of the inputs on this machine that were changed last before a time.

    One that was changed since may change again without a difference in its times, which tick.

    Args:
        inputs: the files.
        read_ns: when it began to be read, in nanoseconds since 1970.

    Raises:
        UnreachableError: a file cannot be reached.
    """
    found = ((file.name, file.state()) for file in inputs)
    return {name: list(state) for name, state in found if state and max(state[1:3]) < read_ns}


def seen_path(prefix: Path) -> Path:
    """Return where the states of the inputs of an output are kept."""
    return prefix.with_name(f".{prefix.name}.inputs.json")


def write_seen(prefix: Path, fingerprint: str, seen: States) -> None:
    """Keep the states in which the inputs of an output were read, if that is possible.

    Args:
        prefix: path of the output, without suffix.
        fingerprint: of its manifest.
        seen: the states.
    """
    content = {"fingerprint": fingerprint, "inputs": seen}
    with contextlib.suppress(OSError):
        files.write_text(seen_path(prefix), json.dumps(content, ensure_ascii=False) + "\n")


def read_seen(prefix: Path, fingerprint: str) -> States:
    """Return the states in which the inputs of an output were read, as far as they are known."""
    with contextlib.suppress(DataError):
        content = files.read_json(seen_path(prefix))
        if content.get("fingerprint") == fingerprint and isinstance(content.get("inputs"), dict):
            return dict(content["inputs"])
    return {}
