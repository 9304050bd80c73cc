"""``rwkvkit recipes``: the recipes that ship."""

from pathlib import Path

import click

from rwkvkit.cli.console import Console, command
from rwkvkit.cli.options import json_option
from rwkvkit.errors import UsageError
from rwkvkit.files import write_text
from rwkvkit.recipe.load import bundled_recipes, find_recipe, read_recipe
from rwkvkit.recipe.reference import reference


@click.group(invoke_without_command=True, short_help="List, show and copy the built-in recipes.")
@json_option
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List, show and copy the built-in recipes."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes, as_json=as_json)
    elif as_json:
        raise UsageError("--json stands last", hint="rwkvkit recipes list --json")


@recipes.command("list")
@json_option
def list_recipes(as_json: bool = False) -> None:
    """List them, each with its first line."""
    console = Console(as_json=as_json)
    known = {name: _title(path) for name, path in bundled_recipes().items()}
    width = max(map(len, known))
    for name, title in known.items():
        console.result(f"{name.ljust(width)}  {title}")
    console.result("next: rwkvkit recipes copy NAME, edit it, and rwkvkit train NAME.yaml")
    console.finish(known)


@recipes.command("show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print the recipe NAME."""
    click.echo(read_recipe(find_recipe(name)), nl=False)


@recipes.command("keys")
def recipe_keys() -> None:
    """Print every key of a recipe with its meaning, as Markdown."""
    click.echo(reference(), nl=False)


@recipes.command("copy")
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path), required=False)
def copy_recipe(name: str, target: Path | None) -> None:
    """Copy the recipe NAME to TARGET (NAME.yaml in this folder unless given)."""
    source = find_recipe(name)
    target = target or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UsageError(
            "the file exists", where=str(target), hint="name another target, or move it away"
        )
    write_text(target, read_recipe(source))
    click.echo(f"copied to {target}\nnext: edit it, then {command('train', target)}")


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
