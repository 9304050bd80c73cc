"""What a person sees: results on stdout, progress on stderr."""

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

_TERMINAL_SECONDS = 0.1
_LOG_SECONDS = 5.0


def command(*words: object) -> str:
    """Return a command of rwkvkit as a shell takes it, whatever its paths hold."""
    return shlex.join(["rwkvkit", *map(str, words)])


class Console:
    """Writes notes and progress to stderr, and results to stdout, as text or as one JSON object.

    On a terminal, progress rewrites one line; elsewhere it is a line every few seconds.

    Args:
        as_json: write results as one JSON object.
        silent: write nothing; for all processes of a run but the first.
    """

    def __init__(self, *, as_json: bool, silent: bool = False) -> None:
        self._json = as_json
        self._silent = silent
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._width = 0

    def note(self, text: str) -> None:
        """Write a line about the work."""
        if self._silent:
            return
        self._clear()
        click.echo(text, err=True)

    def progress(self, text: str, *, last: bool = False) -> None:
        """Show where long work stands; ``last`` shows it whenever the one before was."""
        now = time.monotonic()
        if self._silent:
            return
        if not last and now - self._last < (_TERMINAL_SECONDS if self._live else _LOG_SECONDS):
            return
        self._last = now
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]
            click.echo("\r" + text.ljust(self._width), err=True, nl=last)
            self._width = 0 if last else len(text)
        else:
            click.echo(text, err=True)

    def result(self, text: str) -> None:
        """Write a line of the result for people."""
        self._clear()
        if not (self._json or self._silent):
            click.echo(text)

    def echo(self, piece: str) -> str:
        """Write a piece of text as it comes, and return it."""
        if not (self._json or self._silent):
            click.echo(piece, nl=False)
        return piece

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the result as the one object of ``--json``."""
        if self._json and not self._silent:
            plain = _finite(facts)
            click.echo(json.dumps(plain, ensure_ascii=False, allow_nan=False, default=str))

    def _clear(self) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)
            self._width = 0


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Align columns: text to the left, numbers to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [
        all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))
    ]
    return [
        "  ".join(
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def shape(sizes: Sequence[int]) -> str:
    """Write a tensor's shape as ``768x64``."""
    return "x".join(map(str, sizes)) or "scalar"


def size(n_bytes: float) -> str:
    """Write a number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Write seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _finite(value: Any) -> Any:
    """Replace what JSON has no number for by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
