"""The training loop, from top to bottom."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rwkvkit.errors import DivergedError, InterruptedRun, RecipeError
from rwkvkit.train.batch import Sampler
from rwkvkit.train.checkpoints import CheckpointStore
from rwkvkit.train.engine import Engine, StepResult
from rwkvkit.train.group import Group, Solo, said_once
from rwkvkit.train.metrics import MetricsLog
from rwkvkit.train.observe import END_EARLY, Probe, Sink, StepReport
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.prefetch import Prefetch
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.signals import StopRequest
from rwkvkit.train.watch import Watch


def train(
    engine: Engine,
    samples: Sampler,
    plan: TrainPlan,
    files: RunFiles,
    *,
    report: Callable[[str], None],
    sinks: Sequence[Sink] = (),
    probes: Sequence[Probe] = (),
    utilisation: float | None = None,
    group: Group | None = None,
) -> None:
    """Train to the end of the schedule, resuming from the newest whole checkpoint.

    Every process of the run calls this. Each trains on its own samples of a step and knows of all
    what rank 0 knows; rank 0 alone reports and writes the metrics.

    Args:
        engine: holds the model with its initial weights.
        samples: the data.
        plan: the choices of the run.
        files: where the run's files go.
        report: takes lines for people.
        sinks: take the row of each step, beside ``metrics.jsonl``.
        probes: measure more after a step, such as a validation loss, in this order; every process
            asks them.
        utilisation: share of the hardware's peak that one token a second takes; None: unknown.
        group: the processes of the run; this one alone unless given.

    Raises:
        DivergedError: too many gradients in a row, the last ones of the run, or a weight were not
            finite.
        InterruptedRun: SIGINT or SIGTERM asked to stop; a checkpoint was saved.
        SetupError: a checkpoint could not be saved.
        DataError: a token is outside the vocabulary, or every checkpoint is damaged.
        RecipeError: the run had ended, and its checkpoints are gone.
        FailedElsewhere: another process failed.
    """
    group = group or Solo()
    batch, steps = plan.global_batch, plan.schedule.steps
    own = batch // group.world  # samples of this process in a step
    rollback = plan.config.guards.on_spike == "rollback"
    store = CheckpointStore(
        files.checkpoints, keep=plan.config.keep, keep_due=rollback, group=group
    )
    done = _resume(engine, store, steps, report)
    if done == 0 and files.final.exists():
        finished = RecipeError(
            "this folder holds a finished run without its checkpoints",
            where=str(files.folder),
            hint="give the new run another name or run_dir; this one would replace its results",
        )
        raise said_once(group, finished)
    due = False
    with (
        StopRequest() as stop,
        ExitStack() as held,
        Prefetch(samples, stride=batch, end=steps * batch) as ready,
    ):
        rows = []
        if group.rank == 0:
            metrics = held.enter_context(MetricsLog(files.metrics, done=done))
            rows, sinks = metrics.rows, (metrics.write, *sinks)
        rows = group.gather(rows)[0]
        watch = Watch(plan, samples, done, rows, utilisation)
        ended = bool(rows) and END_EARLY in rows[-1]
        while done < steps and not ended:
            lr, weight_decay = plan.schedule.lr(done), plan.schedule.weight_decay(done)
            result = engine.step(
                ready.read(1 + done * batch + group.rank * own, own),
                lr=lr,
                weight_decay=weight_decay,
            )
            done += 1
            now = watch.report(
                done, result, lr=lr, weight_decay=weight_decay, waited_s=ready.waited_s
            )
            if now.spike is not None:
                now = _meet_spike(now, plan, engine, store, report)
            try:
                for probe in probes:
                    now = replace(now, found={**now.found, **probe(done, engine)})
            except DivergedError as error:
                raise said_once(group, _diverged(error, done, store, files)) from None
            for sink in sinks if group.rank == 0 else ():
                sink(now)
            ended = done == steps or END_EARLY in now.found
            if result.skipped and (end := _meet_skip(now, result, plan, report, ended=ended)):
                raise said_once(group, _diverged(end, done, store, files))
            stopped_by = next(filter(None, group.gather(stop.name)), None)
            due = due or done % plan.save_every == 0 or now.rolled_back_to is not None
            if result.skipped and not ended:
                continue  # no weights to resume from: to save, or to stop, waits for a good step
            if stopped_by or ended or due:
                try:
                    store.save(done, engine.save, due=due)
                except DivergedError as error:
                    raise said_once(group, _diverged(error, done, store, files)) from None
                due = False
            if stopped_by and not ended:
                interrupted = InterruptedRun(
                    f"{stopped_by} after step {done:,} of {steps:,}; a checkpoint was saved",
                    where=str(files.checkpoints),
                    hint="the same command resumes from it",
                )
                raise said_once(group, interrupted)
    with group.together():
        engine.write_model(files.final)


def _resume(
    engine: Engine, store: CheckpointStore, steps: int, report: Callable[[str], None]
) -> int:
    """Load the newest whole checkpoint, if there is one; return the steps that are done."""
    store.clean()
    newest = store.newest(report)
    if newest is None:
        return 0
    engine.load(newest.folder)
    report(f"resuming from {newest.folder}: {newest.step:,} of {steps:,} steps are done")
    return newest.step


def _meet_spike(
    now: StepReport,
    plan: TrainPlan,
    engine: Engine,
    store: CheckpointStore,
    report: Callable[[str], None],
) -> StepReport:
    """Report a loss spike and, if the recipe says so, take the weights of the last checkpoint.

    One that a signal brought about is passed over: without the signal it would not be there. The
    step count stays: schedule and samples go on after the spike.
    """
    what = f"step {now.step:,}: loss {now.loss:.4f} is {now.spike:.1f} sigma above its mean"
    if plan.config.guards.on_spike == "flag":
        report(what)
        return now
    last = store.newest(report, due=True)
    if last is None:
        report(f"{what}; there is no checkpoint to roll back to yet")
        return now
    engine.load(last.folder)
    report(f"{what}; rolled back to the weights of step {last.step:,}, its samples are left out")
    return replace(now, rolled_back_to=last.step)


def _meet_skip(
    now: StepReport,
    result: StepResult,
    plan: TrainPlan,
    report: Callable[[str], None],
    *,
    ended: bool,
) -> DivergedError | None:
    """Report a step without a finite gradient.

    Returns:
        The error that ends the run: too many in a row, or several when it has ``ended``.
    """
    found = f"loss {result.loss}, gradient norm {result.grad_norm}"
    limit = min(plan.config.guards.max_skipped, now.steps)
    limit = min(limit, 2) if ended else limit
    if now.skipped_in_a_row < limit:
        report(f"step {now.step:,} skipped: {found}; {now.skipped:,} skipped so far")
        return None
    return DivergedError(f"{now.skipped_in_a_row:,} steps in a row were skipped: {found}")


def _diverged(
    error: DivergedError, done: int, store: CheckpointStore, files: RunFiles
) -> DivergedError:
    last = store.newest(lambda line: None)
    kept = f"the last good checkpoint is {last.folder}" if last else "no checkpoint was saved yet"
    return DivergedError(
        f"after {done:,} steps: {error.what}; {kept}",
        where=str(files.folder),
        hint="lower train.lr_init, raise train.warmup_steps or train.adam_eps, and start the run "
        "again under another name",
    )
