"""The training loop, from top to bottom."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rwkvkit.errors import DivergedError, InterruptedRun, RecipeError
from rwkvkit.train.batch import Sampler
from rwkvkit.train.checkpoints import CheckpointStore
from rwkvkit.train.engine import Engine
from rwkvkit.train.metrics import MetricsLog, plot_loss
from rwkvkit.train.observe import Probe, Sink, StepReport
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.signals import StopRequest

_WINDOW = 20  # steps


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, all in one folder.

    Attributes:
        folder: the run's folder.
    """

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints to resume from."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.folder / "metrics.jsonl"

    @property
    def loss_curve(self) -> Path:
        """The picture of the loss."""
        return self.folder / "loss.png"

    @property
    def started(self) -> bool:
        """Whether the run has anything that another run must not replace."""
        return self.final.exists() or any(self.checkpoints.glob("step-*"))

    @property
    def final(self) -> Path:
        """The weights at the end of the run, under the name the reference uses."""
        return self.folder / "rwkv-final.pth"


def train(
    engine: Engine,
    samples: Sampler,
    plan: TrainPlan,
    files: RunFiles,
    *,
    report: Callable[[str], None],
    sinks: Sequence[Sink] = (),
    probes: Sequence[Probe] = (),
) -> None:
    """Train to the end of the schedule, resuming from the newest whole checkpoint.

    Args:
        engine: holds the model with its initial weights.
        samples: the data.
        plan: the choices of the run.
        files: where the run's files go.
        report: takes lines for people.
        sinks: take the row of each step, beside ``metrics.jsonl``.
        probes: measure more after a step, such as a validation loss, in this order.

    Raises:
        DivergedError: the loss, the gradient or a weight was not finite.
        InterruptedRun: SIGINT or SIGTERM asked to stop; a checkpoint was saved.
        SetupError: a checkpoint could not be saved.
        DataError: a token is outside the vocabulary, or every checkpoint is damaged.
        RecipeError: the run had ended, and its checkpoints are gone.
    """
    batch, steps = plan.config.global_batch, plan.schedule.steps
    store = CheckpointStore(files.checkpoints, keep=plan.config.keep)
    done = _resume(engine, store, steps, report)
    if done == 0 and files.final.exists():
        raise RecipeError(
            "this folder holds a finished run without its checkpoints",
            where=str(files.folder),
            hint="give the new run another name or run_dir; this one would replace its results",
        )
    clock = Clock(done)
    with StopRequest() as stop, MetricsLog(files.metrics, done=done) as metrics:
        while done < steps:
            lr, weight_decay = plan.schedule.lr(done), plan.schedule.weight_decay(done)
            try:
                result = engine.step(
                    samples.read(1 + done * batch, batch), lr=lr, weight_decay=weight_decay
                )
                done += 1
                stopped_by = stop.name
                save = stopped_by or done % plan.save_every == 0 or done == steps
                if save:
                    store.save(done, engine.save)
            except DivergedError as error:
                raise _diverged(error, done, store, files) from None
            rate = clock.rate(done) * batch * plan.ctx_len
            now = StepReport(
                step=done,
                steps=steps,
                tokens=done * batch * plan.ctx_len,
                loss=result.loss,
                lr=lr,
                weight_decay=weight_decay,
                grad_norm=result.grad_norm,
                tokens_per_s=rate,
                eta_s=(steps - done) * batch * plan.ctx_len / rate,
            )
            for probe in probes:
                now = replace(now, found={**now.found, **probe(done, engine)})
            for sink in (metrics.write, *sinks):
                sink(now)
            if save:
                plot_loss(files.metrics, files.loss_curve)
            if stopped_by and done < steps:
                raise InterruptedRun(
                    f"{stopped_by} after step {done:,} of {steps:,}; a checkpoint was saved",
                    where=str(files.checkpoints),
                    hint="the same command resumes from it",
                )
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


class Clock:
    """Measures speed over the newest steps, so that it follows a machine that others use too."""

    def __init__(self, done: int) -> None:
        self._ends = deque([(done, time.monotonic())], maxlen=_WINDOW)

    def rate(self, done: int) -> float:
        """Return steps a second, now that ``done`` steps are done."""
        self._ends.append((done, time.monotonic()))
        (first, since), (last, now) = self._ends[0], self._ends[-1]
        return (last - first) / max(now - since, 1e-9)


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
