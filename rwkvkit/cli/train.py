"""``rwkvkit train``: everything from text to a trained model."""

from typing import TYPE_CHECKING, Any

import click

from rwkvkit.cli.console import Console, duration
from rwkvkit.cli.generate import stream_text
from rwkvkit.cli.init_weights import draw
from rwkvkit.cli.options import recipe_options, workers_option
from rwkvkit.cli.prepare import run_prepare
from rwkvkit.recipe.load import load_recipe
from rwkvkit.recipe.schema import Recipe, SampleSpec

if TYPE_CHECKING:
    from rwkvkit.train.observe import Sink, StepReport
    from rwkvkit.workflow.run import Run


@click.command(short_help="Train the model of a recipe, preparing what is missing.")
@recipe_options
@workers_option
def train(
    recipe_name: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool, workers: int | None
) -> None:
    """Train the model of RECIPE (a path, or the name of a recipe that ships).

    Makes the dataset and the initial weights first if they are missing or out of date, and
    resumes an interrupted run from its newest checkpoint. Ctrl-C and SIGTERM save one.
    """
    from rwkvkit.model.describe import summary
    from rwkvkit.workflow.run import Run

    console = Console(as_json=as_json)
    recipe = load_recipe(recipe_name, overrides)
    run = Run.of(recipe)
    if dry_run:
        _dry_run(recipe, run, console)
        return
    facts: dict[str, Any] = {"name": recipe.name, "run_dir": str(recipe.folder)}
    if build := run.build():
        facts["prepare"] = run_prepare(build, console, workers)
    init = run.weights.status()
    console.note(f"init-weights: {init.reason}" + ("" if init.up_to_date else ": drawing them"))
    if not init.up_to_date:
        draw(run.weights, console)
    data = run.data()
    samples = run.samples(data)
    plan = run.plan(samples)
    console.note(f"model {summary(run.model_config)}")
    for line in plan.lines:
        console.note(f"train: {line}")
    status = run.status(data, plan)
    console.note(f"train: {'up to date: ' if status.up_to_date else ''}{status.reason}")
    if not status.up_to_date:
        run.train(data, samples, plan, report=console.note, sinks=[_shower(console)])
    end = run.finished()
    facts |= {"skipped": status.up_to_date, "final": str(run.files.final)} | end
    console.result(
        f"trained {end['step']:,} steps, {end['tokens']:,} tokens: loss {end['loss']:.4f}"
    )
    console.result(f"weights {run.files.final}, loss curve {run.files.loss_curve}")
    final, adapter = run.files.final, ""
    if run.needs_base:
        final, adapter = run.weights.path, f" --adapter {run.files.final}"
    if recipe.sample:
        facts["sample"] = _sample(recipe.sample, run, console)
    console.result(f'next: rwkvkit generate {final}{adapter} --prompt "…"')
    console.finish(facts)


def _shower(console: Console) -> "Sink":
    def show(now: "StepReport") -> None:
        parts = [
            f"step {now.step:,}/{now.steps:,}",
            f"loss {now.loss:.4f}",
            f"mean {now.loss_smooth:.4f}",
            f"lr {now.lr:.2e}",
            f"grad {now.grad_norm:.2f}",
            f"{now.tokens_per_s:,.0f} tok/s",
            f"MFU {now.mfu:.1%}" if now.mfu is not None else "",
            f"{now.peak_memory_gb:.1f} GB",
            f"wait {now.data_wait_s * 1e3:.0f} ms",
            f"{now.skipped:,} skipped" if now.skipped else "",
            f"{now.tokens:,} tokens",
            f"ETA {duration(now.eta_s)}",
        ]
        console.progress("  ".join(part for part in parts if part), last=now.step == now.steps)

    return show


def _dry_run(recipe: Recipe, run: "Run", console: Console) -> None:
    """Show what training would do, as far as it is known before the data is there."""
    from rwkvkit.model.describe import n_parameters, summary

    steps = []
    data = None
    if build := run.build():
        for line in build.describe():
            console.result(f"prepare: {line}")
        status = build.status()
        steps.append(("prepare", status))
        if status.up_to_date:
            data = run.data()
    else:
        data = run.data()
    steps.append(("init-weights", run.weights.status()))
    console.result(f"model: {summary(run.model_config)}")
    plan_lines: tuple[str, ...] = ()
    if data is not None:
        plan = run.plan(run.samples(data))
        plan_lines = plan.lines
        if run.weights.path.exists():
            steps.append(("train", run.status(data, plan)))
    else:
        console.result("train: order and steps follow when the dataset is there")
    for line in plan_lines:
        console.result(f"train: {line}")
    for name, status in steps:
        verb = "up to date" if status.up_to_date else "would run"
        console.result(f"{name}: {verb}: {status.reason}")
    console.finish(
        {
            "name": recipe.name,
            "run_dir": str(recipe.folder),
            "model": run.model_config.model_dump(),
            "parameters": n_parameters(run.model_config),
            "steps": {
                name: {"up_to_date": status.up_to_date, "reason": status.reason}
                for name, status in steps
            },
            "plan": list(plan_lines),
        }
    )


def _sample(sample: SampleSpec, run: "Run", console: Console) -> str:
    base = run.weights.path if run.needs_base else None
    console.result(f"sample, continuing {sample.prompt!r}:")
    text = "".join(
        console.echo(piece)
        for piece in stream_text(
            base or run.files.final,
            sample.prompt,
            adapter=run.files.final if base else None,
            max_tokens=sample.max_tokens,
            temperature=sample.temperature,
            top_p=sample.top_p,
            seed=sample.seed,
        )
    )
    console.result("")
    return text
