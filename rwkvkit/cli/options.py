"""Options that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rwkvkit.data.build import LEAST_MEMORY, MEMORY

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of text."
)

vocab_option = click.option(
    "--vocab",
    type=click.Path(path_type=Path),
    help="Vocabulary file or tokenizer.json that encoded its data; World unless given.",
)


def recipe_options(command: Command) -> Command:
    """Add RECIPE, ``--set``, ``--dry-run`` and ``--json``."""
    command = json_option(command)
    command = click.option(
        "--dry-run",
        is_flag=True,
        help="Check the recipe and files and show what would be done; write nothing.",
    )(command)
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace a value of the recipe, such as train.micro_bsz=4. May be repeated.",
    )(command)
    return click.argument("recipe_name", metavar="RECIPE")(command)


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Bytes(click.ParamType):
    """A number of bytes such as ``512MiB`` or ``2G``; units are powers of 1024."""

    name = "SIZE"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value, re.IGNORECASE)
        if not found:
            self.fail(f"{value!r} is no size such as 512MiB or 2GiB", parameter, context)
        n_bytes = int(float(found[1]) * _UNITS[found[2].upper()])
        if n_bytes < self._least:
            few = f"{value!r} is less than {self._least:,} bytes"
            meant = f": did you mean {found[1]}MiB?" if not found[2] else ": 2GiB, say, is more"
            self.fail(few + meant, parameter, context)
        return n_bytes


memory_option = click.option(
    "--memory",
    type=Bytes(LEAST_MEMORY),
    default=MEMORY,
    help="Memory for putting documents in order; 2GiB unless given. The output is always the same.",
)

workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes or threads that read and encode; all cores unless given. The output is the "
    "same for any number.",
)


def launch_options(command: Command) -> Command:
    """Add what says how many processes train, and on which machines."""
    for option in (
        click.option(
            "--hostfile",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Start the run over ssh on the hosts that FILE names, a line HOST slots=N each.",
        ),
        click.option(
            "--master",
            metavar="HOST:PORT",
            help="Where the processes of several machines meet: the first machine, a free port.",
        ),
        click.option("--node-rank", type=int, help="Number of this machine, from 0."),
        click.option(
            "--nodes",
            type=click.IntRange(min=1),
            help="Machines; start the same command on each with its --node-rank.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(min=1),
            help="Train with this many processes, on the CPU where there are no GPUs.",
        ),
        click.option(
            "--gpus",
            type=click.IntRange(min=1),
            help="Train with this many GPUs of this machine, a process each.",
        ),
    ):
        command = option(command)
    return command
