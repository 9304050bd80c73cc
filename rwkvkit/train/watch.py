"""Turns what a step measured into what a run tells about it."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rwkvkit.train.batch import Sampler
from rwkvkit.train.device import peak_memory
from rwkvkit.train.engine import StepResult
from rwkvkit.train.observe import StepReport
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.smoothing import SmoothedLoss

_WINDOW = 20  # steps


class Watch:
    """Keeps what a run's reports need to know of the steps before.

    Args:
        plan: the choices of the run.
        samples: the data; says how many tokens a number of samples has.
        done: optimizer steps done.
        rows: the rows of ``metrics.jsonl`` up to there; all but the speed continues from them.
        utilisation: share of the hardware's peak that one token a second takes; None: unknown.
    """

    def __init__(
        self,
        plan: TrainPlan,
        samples: Sampler,
        done: int,
        rows: Sequence[Mapping[str, Any]] = (),
        utilisation: float | None = None,
    ) -> None:
        self._plan = plan
        self._samples = samples
        self._smoothed = SmoothedLoss(plan.config.guards.spike_sigma, rows)
        self._clock = Clock(self._tokens(done))
        self._utilisation = utilisation
        self._skipped = int(rows[-1].get("skipped", 0)) if rows else 0
        self._skipped_in_a_row = 0
        for row in reversed(rows):
            if row["loss"] is not None:
                break
            self._skipped_in_a_row += 1

    def report(
        self, done: int, result: StepResult, *, lr: float, weight_decay: float, waited_s: float
    ) -> StepReport:
        """Return the report of the step that brought the run to ``done`` steps."""
        tokens, steps = self._tokens(done), self._plan.schedule.steps
        rate = self._clock.rate(tokens)
        self._skipped += result.skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result.skipped else 0
        loss = math.nan if result.skipped else result.loss
        spike = self._smoothed.add(loss)
        smooth = self._smoothed.value
        return StepReport(
            step=done,
            steps=steps,
            tokens=tokens,
            loss=loss,
            loss_smooth=math.nan if smooth is None else smooth,
            lr=lr,
            weight_decay=weight_decay,
            grad_norm=result.grad_norm,
            skipped=self._skipped,
            skipped_in_a_row=self._skipped_in_a_row,
            spike=spike,
            tokens_per_s=rate,
            mfu=None if self._utilisation is None else self._utilisation * rate,
            peak_memory_gb=peak_memory(self._plan.placement.device) / 1e9,
            data_wait_s=waited_s,
            eta_s=(self._tokens(steps) - tokens) / rate,
        )

    def _tokens(self, step: int) -> int:
        return self._samples.tokens(step * self._plan.global_batch)


class Clock:
    """Measures tokens over the newest steps, so that it follows a machine that others use too."""

    def __init__(self, done: int) -> None:
        self._ends = deque([(done, time.monotonic())], maxlen=_WINDOW)

    def rate(self, done: int) -> float:
        """Return tokens a second, now that ``done`` tokens are done."""
        self._ends.append((done, time.monotonic()))
        (first, since), (last, now) = self._ends[0], self._ends[-1]
        return (last - first) / max(now - since, 1e-9)
