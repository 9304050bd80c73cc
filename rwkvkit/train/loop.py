"""The training loop, from top to bottom."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkvkit.data.binidx import Binidx
from rwkvkit.errors import DivergedError, InterruptedRun, RecipeError
from rwkvkit.train.checkpoints import CheckpointStore
from rwkvkit.train.engine import Engine
from rwkvkit.train.metrics import MetricsLog, plot_loss
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.sampler import SampleReader
from rwkvkit.train.signals import StopRequest

_WINDOW = 20  # steps


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps of the run.
        tokens: tokens trained on.
        loss: cross entropy of the step, nats a token.
        lr: learning rate of the step.
        grad_norm: gradient norm before clipping.
        tokens_per_s: speed over the last steps.
        eta_s: seconds that remain at that speed.
    """

    step: int
    steps: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    eta_s: float


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
    data: Binidx,
    plan: TrainPlan,
    files: RunFiles,
    *,
    vocab_size: int,
    report: Callable[[str], None],
    progress: Callable[[Progress], None],
) -> None:
    """Train to the end of the schedule, resuming from the newest whole checkpoint.

    Args:
        engine: holds the model with its initial weights.
        data: the dataset.
        plan: the choices of the run.
        files: where the run's files go.
        vocab_size: of the model; no token may reach it.
        report: takes lines for people.
        progress: called after each step.

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
    samples = SampleReader(data, plan.magic_prime, plan.ctx_len, vocab_size)
    clock = Clock(done)
    with StopRequest() as stop, MetricsLog(files.metrics, done=done) as metrics:
        while done < steps:
            lr, weight_decay = plan.schedule.lr(done), plan.schedule.weight_decay(done)
            x, y, mask = samples.read(1 + done * batch, batch)
            try:
                result = engine.step(
                    torch.from_numpy(x),
                    torch.from_numpy(y),
                    None if mask is None else torch.from_numpy(mask),
                    lr=lr,
                    weight_decay=weight_decay,
                )
                done += 1
                stopped_by = stop.name
                save = stopped_by or done % plan.save_every == 0 or done == steps
                if save:
                    store.save(done, engine.save)
            except DivergedError as error:
                raise _diverged(error, done, store, files) from None
            rate = clock.rate(done) * batch * plan.ctx_len
            now = Progress(
                step=done,
                steps=steps,
                tokens=done * batch * plan.ctx_len,
                loss=result.loss,
                lr=lr,
                grad_norm=result.grad_norm,
                tokens_per_s=rate,
                eta_s=(steps - done) * batch * plan.ctx_len / rate,
            )
            metrics.write(
                {
                    "step": done,
                    "tokens": now.tokens,
                    "loss": result.loss,
                    "lr": lr,
                    "weight_decay": weight_decay,
                    "grad_norm": result.grad_norm,
                    "tokens_per_s": round(rate, 1),
                }
            )
            progress(now)
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
