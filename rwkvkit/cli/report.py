"""``rwkvkit report`` and ``rwkvkit compare``: pages about runs."""

from pathlib import Path

import click

from rwkvkit.cli.console import Console, command, table
from rwkvkit.cli.options import json_option
from rwkvkit.errors import UsageError

_FOLDER = click.Path(path_type=Path)


@click.command(short_help="Write a page about a run.")
@click.argument("run", type=_FOLDER)
@json_option
def report(run: Path, as_json: bool) -> None:
    """Write report.html into the folder RUN: recipe, data, curves, samples, system, in one file.

    Training writes it too, every few minutes and at the end.
    """
    from rwkvkit.workflow.page import write_report

    console = Console(as_json=as_json)
    path = write_report(run)
    console.result(f"wrote {path}")
    console.result(f"next: open it, or {command('compare', run)} ANOTHER")
    console.finish({"report": str(path)})


@click.command(short_help="Compare runs: figures side by side, curves in one chart.")
@click.argument("runs", metavar="RUN RUN ...", type=_FOLDER, nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=_FOLDER,
    default=Path("compare.html"),
    help="The page; compare.html unless given.",
)
@json_option
def compare(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Show the figures of runs side by side, and write a page with their curves in one chart.

    RUN is a run's folder, such as out/quickstart.
    """
    from rwkvkit.workflow.history import RunHistory
    from rwkvkit.workflow.page import labels, setting_differences, write_comparison

    console = Console(as_json=as_json)
    if out.is_dir():
        raise UsageError("is a folder", where=str(out), hint=f"say -o {out / 'compare.html'}")
    histories = [RunHistory.read(run) for run in runs]
    names = labels(histories)
    figures = dict(zip(names, (history.figures() for history in histories), strict=True))
    columns = [
        name
        for name in next(iter(figures.values()))
        if any(found[name] is not None for found in figures.values())
    ]
    rows = [
        [name, *("-" if found[column] is None else found[column] for column in columns)]
        for name, found in figures.items()
    ]
    for line in table(["run", *columns], rows):
        console.result(line)
    changes = setting_differences(histories)
    for name, change in changes.items():
        console.result(f"{name} differs from {names[0]} in: {change}")
    write_comparison(histories, out)
    console.result(f"wrote {out}")
    console.result(f"next: open {out}")
    console.finish({"runs": figures, "differences": changes, "page": str(out)})
