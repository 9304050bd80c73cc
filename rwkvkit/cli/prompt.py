"""The prompt of ``rwkvkit generate``: a text, a file, or what a user says to a chat model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from rwkvkit.cli.options import Command
from rwkvkit.data.chat import NEXT_TURN, chat_prompt
from rwkvkit.data.forms import BadLine
from rwkvkit.errors import DataError, UsageError


def prompt_options(command: Command) -> Command:
    """Add ``--prompt``, ``--prompt-file``, ``--user``, ``--system`` and ``--stop``."""
    for option in (
        click.option(
            "--stop",
            multiple=True,
            metavar="TEXT",
            help="End the output before this text. May be repeated.",
        ),
        click.option("--system", metavar="TEXT", help="With --user: what stands before it."),
        click.option(
            "--user",
            metavar="TEXT",
            help="What a user says to a chat model, in the World template; one answer follows.",
        ),
        click.option(
            "--prompt-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A file with the text to continue, in UTF-8; the line end at its end is left out.",
        ),
        click.option(
            "--prompt", metavar="TEXT", help="The text to continue; - reads it from stdin."
        ),
    ):
        command = option(command)
    return command


class Prompt(NamedTuple):
    """What is asked of a model.

    Attributes:
        text: to continue.
        stop: texts that end the output.
    """

    text: str
    stop: tuple[str, ...]

    @classmethod
    def of(
        cls,
        prompt: str | None,
        prompt_file: Path | None,
        user: str | None,
        system: str | None,
        stop: tuple[str, ...],
        note: Callable[[str], None],
    ) -> "Prompt":
        r"""Make the prompt of the options.

        Args:
            prompt: ``--prompt``.
            prompt_file: ``--prompt-file``.
            user: ``--user``.
            system: ``--system``.
            stop: ``--stop``.
            note: takes a line about ``\n`` that the shell has left as it is.

        Raises:
            DataError: a file or stdin cannot be read or is no UTF-8.
            UsageError: none is given or more than one, or the text is empty.
        """
        options = {"--prompt": prompt, "--prompt-file": prompt_file, "--user": user}
        given = [name for name, value in options.items() if value is not None]
        if len(given) != 1:
            raise UsageError(
                f"{' and '.join(given)} exclude each other" if given else "there is no prompt",
                hint="give one of --prompt TEXT (a text to continue), --prompt-file FILE, or "
                "--user TEXT (to ask a chat model)",
            )
        if system is not None and user is None:
            raise UsageError("--system belongs to --user", hint="say both, or write a --prompt")
        if "" in stop:
            raise UsageError("the text is empty", where="--stop", hint="leave it out")
        for name, text in (("--prompt", prompt), *(("--stop", text) for text in stop)):
            if text and r"\n" in text:
                note(
                    rf"{name} holds a backslash and an n, which is no line end: bash writes one as "
                    rf"{name} $'…\n…'; --user and --prompt-file need none"
                )
        if user is not None:
            try:
                return cls(chat_prompt(user, system), (NEXT_TURN, *stop))
            except BadLine as error:
                raise UsageError(error.reason, hint="give a text in UTF-8") from error
        text = prompt
        if prompt_file or prompt == "-":
            text = _read(prompt_file)
        if not text:
            raise UsageError("the prompt is empty", where=given[0], hint="give a text to continue")
        return cls(text, stop)


def _read(path: Path | None) -> str:
    """Return the text of a file, or of stdin, without the line end at its end."""
    where = str(path or "stdin")
    try:
        content = path.read_bytes() if path else sys.stdin.buffer.read()
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte {error.start} is 0x{content[error.start]:02x}",
            where=where,
            hint="save it as UTF-8",
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=where, hint="give the file of a prompt"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")
