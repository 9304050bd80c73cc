"""``rwkvkit prepare``: run the data stages of a recipe."""

import time
from typing import Any

import click

from rwkvkit.cli.console import Console, duration, size
from rwkvkit.cli.options import recipe_options, workers_option
from rwkvkit.data.build import Build, Progress
from rwkvkit.data.manifest import Manifest, read_manifest
from rwkvkit.recipe.dataset import make_build
from rwkvkit.recipe.load import load_recipe


@click.command(short_help="Make the dataset of a recipe.")
@recipe_options
@workers_option
def prepare(
    recipe_name: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool, workers: int | None
) -> None:
    """Make the dataset of RECIPE (a path, or the name of a recipe that ships).

    Reads, encodes, shuffles and writes PREFIX.bin and PREFIX.idx with a manifest beside them, and
    computes magic_prime and my_exit_tokens. Does nothing if they are up to date.
    """
    console = Console(as_json=as_json)
    recipe = load_recipe(recipe_name, overrides)
    build = make_build(recipe)
    if dry_run:
        plan = build.describe()
        status = build.status()
        for line in plan:
            console.result(line)
        console.result("up to date" if status.up_to_date else f"would run: {status.reason}")
        console.finish(
            {
                "prefix": str(build.prefix),
                "up_to_date": status.up_to_date,
                "reason": status.reason,
                "plan": plan,
            }
        )
        return
    facts = run_prepare(build, console, workers)
    console.result(f"next: rwkvkit inspect {build.prefix}, or rwkvkit train {recipe_name}")
    console.finish(facts)


def run_prepare(build: Build, console: Console, workers: int | None) -> dict[str, Any]:
    """Build the dataset unless it is up to date; show what happened and return it as facts."""
    status = build.status()
    manifest = read_manifest(build.prefix) if status.up_to_date else None
    if manifest:
        console.note(f"prepare: up to date: {status.reason}")
    else:
        console.note(f"prepare: {status.reason}: building {build.prefix}")
        manifest = _run(build, console, workers)
    plan = manifest.plan
    console.result(
        f"dataset {build.prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens"
        + (f", {manifest.rejected:,} lines rejected" if manifest.rejected else "")
    )
    if plan:
        console.result(f"reference flags: {plan.flags}")
        if plan.warning:
            console.note(f"prepare: {plan.warning}")
    return {
        "prefix": str(build.prefix),
        "skipped": status.up_to_date,
        "reason": status.reason,
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "rejected": manifest.rejected,
        "ctx_len": manifest.ctx_len,
        "magic_prime": plan.magic_prime if plan else None,
        "my_exit_tokens": plan.my_exit_tokens if plan else None,
    }


def _run(build: Build, console: Console, workers: int | None) -> Manifest:
    started: dict[str, float] = {}

    def show(now: Progress) -> None:
        at = time.monotonic()
        elapsed = at - started.setdefault(now.phase, at)
        rate = now.bytes_done / elapsed if elapsed > 0 else 0.0
        text = f"prepare: {now.phase}  {size(now.bytes_done)}"
        if now.bytes_total is not None:
            text += f" of {size(now.bytes_total)}"
        if rate:
            text += f"  {size(rate)}/s"
            if now.bytes_total is not None:
                text += f"  ETA {duration((now.bytes_total - now.bytes_done) / rate)}"
        text += f"  {now.documents:,} documents  {now.tokens:,} tokens"
        if now.rejected:
            text += f"  {now.rejected:,} rejected"
        console.progress(text, last=now.bytes_done == now.bytes_total)

    return build.run(workers=workers, progress=show)
