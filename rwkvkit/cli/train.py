"""``rwkvkit train``: everything from text to a trained model."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from rwkvkit.cli.console import Console, command, duration
from rwkvkit.cli.init_weights import draw
from rwkvkit.cli.options import launch_options, recipe_options, workers_option
from rwkvkit.cli.prepare import run_prepare
from rwkvkit.errors import UsageError
from rwkvkit.recipe.load import load_recipe
from rwkvkit.recipe.schema import Recipe, SampleSpec
from rwkvkit.train.place import Place, started_by
from rwkvkit.workflow.launch import Launch, start

if TYPE_CHECKING:
    from rwkvkit.model.rwkv import RWKV
    from rwkvkit.train.observe import Sink, StepReport
    from rwkvkit.workflow.run import Run


@click.command(short_help="Train the model of a recipe, preparing what is missing.")
@recipe_options
@workers_option
@launch_options
@click.option(
    "--profile",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Record some steps into trace.json and print the largest operators: train.profile.",
)
@click.pass_obj
def train(
    place: Place | None,
    recipe_name: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    workers: int | None,
    profile: int | None,
    **launching: Any,
) -> None:
    """Train the model of RECIPE (a path, or the name of a built-in recipe).

    Makes the dataset and the initial weights first if they are missing or out of date, and
    resumes an interrupted run from its newest checkpoint. Ctrl-C and SIGTERM save a checkpoint.

    --gpus starts one process for each GPU, --hostfile starts them on several machines; torchrun
    and srun can start the command as well.
    """
    if profile:
        overrides += (f"train.profile={profile}",)
    launch = Launch.of(**launching)
    place = place or started_by(os.environ)
    if place and (launch.processes or launch.hosts):
        raise UsageError(
            f"this is one of {place.world} processes that {place.by} started already",
            hint=f"leave out --gpus, --processes and --hostfile, or start without {place.by}",
        )
    if dry_run:
        from rwkvkit.workflow.run import Run

        recipe = load_recipe(recipe_name, overrides)
        processes = place.world if place else launch.world
        _dry_run(recipe, Run.of(recipe, processes), Console(as_json=as_json))
    elif launch.processes or launch.hosts:
        if launch.hosts:
            settings = load_recipe(recipe_name, overrides).train
            on_gpus = settings is None or settings.device != "cpu"
            launch = replace(launch, on_gpus=on_gpus)  # as a hostfile's slots are meant
        arguments = [
            "train",
            recipe_name,
            *(word for each in overrides for word in ("--set", each)),
        ]
        arguments += ["--json"] if as_json else []
        arguments += ["--workers", str(workers)] if workers else []
        start(launch, arguments, Console(as_json=as_json).note)
    else:
        _train(place, recipe_name, overrides, as_json, workers)


def _train(
    place: Place | None,
    recipe_name: str,
    overrides: tuple[str, ...],
    as_json: bool,
    workers: int | None,
) -> None:
    """Train as the only process, or as one of several that meet here."""
    import torch

    from rwkvkit.model.describe import summary
    from rwkvkit.train.group import joined
    from rwkvkit.workflow.run import Run

    with joined(place, on_gpu=torch.cuda.is_available()) as group:
        console = Console(as_json=as_json, silent=group.rank > 0)
        # Rank 0 makes what is missing; the others find it made, and every mistake is shown once.
        with group.first():
            recipe = load_recipe(recipe_name, overrides)
            run = Run.of(recipe, group.world)
        run.check_alike(group)
        with group.first():
            facts: dict[str, Any] = {"name": recipe.name, "run_dir": str(recipe.folder)}
            if group.rank == 0:
                facts |= _make_what_is_missing(run, console, workers)
            data = run.data()
            samples = run.samples(data)
            plan = run.plan(samples, group.local_rank)
            console.note(f"model {summary(run.model_config)}")
            about = run.evaluations.line(run.evaluations.samples(data), plan)
            for line in (*((place.describe(),) if place else ()), *plan.lines, about):
                console.note(f"train: {line}")
            status = run.status(data, plan)
            begun = "" if run.files.started else "starting at step 0: "
            verb = "up to date: " if status.up_to_date else begun
            console.note(f"train: {verb}{status.reason}")
        if not status.up_to_date:
            run.train(
                data, samples, plan, report=console.note, sinks=[_shower(console)], group=group
            )
    if group.rank == 0:
        _finish(run, facts | {"skipped": status.up_to_date}, console)


def _make_what_is_missing(run: "Run", console: Console, workers: int | None) -> dict[str, Any]:
    """Make the dataset and the initial weights; return what the preparation found."""
    facts = {}
    if build := run.build():
        facts["prepare"] = run_prepare(build, console, workers)
    init = run.weights.status()
    console.note(f"init-weights: {init.reason}" + ("" if init.up_to_date else ": creating them"))
    if not init.up_to_date:
        draw(run.weights, console)
    return facts


def _finish(run: "Run", facts: dict[str, Any], console: Console) -> None:
    """Show what a complete run ends with."""
    recipe, end = run.recipe, run.finished()
    facts |= {"final": str(run.files.final)} | end
    loss = "" if end["loss"] is None else f": loss {end['loss']:.4f}"
    console.result(
        f"trained {end['step']:,} step{'s' * (end['step'] != 1)}, {end['tokens']:,} tokens{loss}"
    )
    console.result(f"weights {run.files.final}, loss curve {run.files.loss_curve}")
    if "skipped_steps" in end:
        console.result(f"steps skipped, their gradient was not finite: {end['skipped_steps']:,}")
    if "end_early" in end:
        console.result(f"ended early: {end['end_early']}")
    if run.files.best.exists():
        console.result(f"weights with the smallest val_loss {run.files.best}")
    if recipe.sample:
        facts["sample"] = _sample(recipe.sample, run, console)
    final = run.files.final
    weights = (run.weights.path, "--adapter", final) if run.needs_base else (final,)
    console.result(f'next: {command("generate", *weights)} --prompt "…"')
    console.finish(facts)


def _shower(console: Console) -> "Sink":
    from rwkvkit.train.observe import END_EARLY

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
            f"data wait {now.data_wait_s * 1e3:.0f} ms",
            f"{now.skipped:,} skipped" if now.skipped else "",
            f"{now.tokens:,} tokens",
            f"ETA {duration(now.eta_s)}",
        ]
        last = now.step == now.steps or END_EARLY in now.found
        console.progress("  ".join(part for part in parts if part), last=last)

    return show


def _dry_run(recipe: Recipe, run: "Run", console: Console) -> None:
    """Show what training would do, as far as it is known before the data is there."""
    from rwkvkit.model.describe import n_parameters, summary

    steps = []
    verbs = {"prepare": "build", "init-weights": "create them", "train": "train"}
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
    plan = None
    if data is not None:
        plan = run.plan(run.samples(data))
        about = run.evaluations.line(run.evaluations.samples(data), plan)
        plan_lines = (*plan.lines, about)
        if run.weights.path.exists():
            steps.append(("train", run.status(data, plan)))
    else:
        console.result("train: order and number of steps are known once the dataset exists")
    forecast = run.choices.forecast(plan)
    for line in (*plan_lines, *forecast.lines):
        console.result(f"train: {line}")
    for name, status in steps:
        done = "nothing to do" if name == "init-weights" else "up to date"
        verb = done if status.up_to_date else f"would {verbs[name]}"
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
            "estimate": forecast.facts(),
        }
    )


def _sample(sample: SampleSpec, run: "Run", console: Console) -> str:
    """Continue the recipe's prompt with the result, where and as ``generate`` would by itself."""
    from rwkvkit.model.generate import generate
    from rwkvkit.workflow.prompts import recipe_tokenizer

    model = _result(run)
    console.result(f"sample, continuing {sample.prompt!r}:")
    text = "".join(
        console.echo(piece)
        for piece in generate(
            model,
            sample.prompt,
            tokenizer=recipe_tokenizer(run.recipe),
            max_tokens=sample.max_tokens,
            temperature=sample.temperature,
            top_p=sample.top_p,
            seed=sample.seed,
        )
    )
    console.result("")
    return text


def _result(run: "Run") -> "RWKV":
    """Load what a complete run ends with, on the CPU if the run's GPU has no room left for it."""
    import torch

    from rwkvkit.model.checkpoint import load_model
    from rwkvkit.train.device import choose_placement

    final = run.files.final
    base, adapter = (run.weights.path, final) if run.needs_base else (final, None)
    place = choose_placement(run.settings.device, "auto")
    try:
        return load_model(base, adapter=adapter, dtype=place.dtype, device=place.device)
    except torch.OutOfMemoryError:  # an engine may hold its memory until the process ends
        return load_model(base, adapter=adapter)
