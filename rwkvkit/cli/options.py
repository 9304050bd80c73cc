"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of text."
)


def recipe_options(command: Command) -> Command:
    """Add RECIPE, ``--set``, ``--dry-run`` and ``--json``."""
    command = json_option(command)
    command = click.option(
        "--dry-run",
        is_flag=True,
        help="Check everything and show what would be done; write nothing.",
    )(command)
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace a value of the recipe, such as train.micro_bsz=4. May be repeated.",
    )(command)
    return click.argument("recipe_name", metavar="RECIPE")(command)


workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that read and encode; all cores unless given. The bytes do not depend on it.",
)
