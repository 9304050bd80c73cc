"""``rwkvkit prepare``: run the data stages of a recipe."""

import os
import time
from typing import Any

import click

from rwkvkit.cli.console import Console, command, duration, size
from rwkvkit.cli.options import memory_option, recipe_options, workers_option
from rwkvkit.data.build import MEMORY, Build
from rwkvkit.data.card import has_card, write_card
from rwkvkit.data.encoding import Run
from rwkvkit.data.manifest import read_manifest
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.shards import Shard
from rwkvkit.errors import UsageError
from rwkvkit.recipe.dataset import make_build
from rwkvkit.recipe.load import load_recipe


@click.command(short_help="Make the dataset of a recipe.")
@recipe_options
@workers_option
@memory_option
@click.option(
    "--shard",
    metavar="N/COUNT",
    help="Do one share of the work, such as 3/16, or `slurm` in an array; afterwards --merge.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where the work runs: processes of this machine, or a Ray cluster that sees its files.",
)
@click.option("--merge", is_flag=True, help="Make the dataset of what the shards have prepared.")
def prepare(
    recipe_name: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    workers: int | None,
    memory: int,
    shard: str | None,
    executor: str,
    merge: bool,
) -> None:
    """Make the dataset of RECIPE (a path, or the name of a built-in recipe).

    Reads, encodes, shuffles and writes PREFIX.bin and PREFIX.idx with a manifest beside them, and
    computes magic_prime and my_exit_tokens. Does nothing if they are up to date. After a stop or
    crash, the same command goes on from there.
    """
    console = Console(as_json=as_json)
    recipe = load_recipe(recipe_name, overrides)
    build = make_build(recipe)
    if dry_run:
        plan = build.describe()
        status = build.status()
        for line in plan:
            console.result(line)
        verb = "up to date" if status.up_to_date else "would build"
        console.result(f"{verb}: {status.reason}")
        console.finish(
            {
                "prefix": str(build.prefix),
                "up_to_date": status.up_to_date,
                "reason": status.reason,
                "plan": plan,
                **({"fingerprint": build.fingerprint()} if as_json else {}),
            }
        )
        return
    if shard and merge:
        raise UsageError("--shard and --merge exclude each other", hint="merge after all shards")
    if shard and executor != "local":
        raise UsageError("a shard runs on its own machine: leave --executor out")
    if shard:
        _run_shard(build, Shard.parse(shard, os.environ), console, recipe_name, workers)
        return
    facts = run_prepare(
        build, console, workers, memory=memory, merge=merge, executor=_executor(executor)
    )
    inspect, train = command("inspect", build.prefix), command("train", recipe_name)
    console.result(f"next: {inspect}, or {train}")
    console.finish(facts)


def run_prepare(
    build: Build,
    console: Console,
    workers: int | None,
    *,
    memory: int = MEMORY,
    merge: bool = False,
    executor: Run | None = None,
) -> dict[str, Any]:
    """Build the dataset unless it is up to date; show what happened and return it as facts."""
    status = build.status(keep=True)
    manifest = read_manifest(build.prefix) if status.up_to_date else None
    if manifest:
        console.note(f"prepare: up to date: {status.reason}")
    else:
        console.note(f"prepare: {status.reason}: building {build.prefix}")
        for line in build.source_lines():
            console.note(f"prepare: {line}")
        show = _progress(console)
        manifest = build.run(
            workers=workers, memory=memory, merge=merge, executor=executor, progress=show
        )
    if not (status.up_to_date and has_card(build.prefix, manifest)):
        write_card(build.prefix, build.encode.load())
    plan = manifest.plan
    console.result(
        f"dataset {build.prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens"
        + (
            f", {manifest.rejected:,} line{'s' * (manifest.rejected != 1)} rejected"
            if manifest.rejected
            else ""
        )
    )
    if plan:
        console.result(f"flags of RWKV-LM for this dataset: {plan.flags}")
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


def _executor(name: str) -> Run | None:
    if name == "local":
        return None
    from rwkvkit.data.ray_run import run_ray

    return run_ray()


def _run_shard(
    build: Build, shard: Shard, console: Console, recipe_name: str, workers: int | None
) -> None:
    """Make the parts of a shard, unless the whole output is there."""
    status = build.status(keep=True)
    if status.up_to_date:
        console.note(f"prepare: up to date: {status.reason}")
        parts = 0
    else:
        console.note(f"prepare: shard {shard} of {build.prefix}")
        parts = build.run_shard(shard, workers=workers, progress=_progress(console))
    console.result(f"shard {shard}: {parts:,} part{'s' * (parts != 1)}")
    merge = command("prepare", recipe_name, "--merge")
    console.result(f"next: when all {shard.count} are done, {merge}")
    console.finish(
        {
            "prefix": str(build.prefix),
            "shard": shard.number,
            "shards": shard.count,
            "parts": parts,
            "skipped": status.up_to_date,
        }
    )


def _progress(console: Console) -> Report:
    """Return what shows the progress of a build."""
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

    return show
