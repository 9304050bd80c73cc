"""What a run tells after each step, who measures more, and who listens."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rwkvkit.train.engine import Engine


@dataclass(frozen=True)
class StepReport:
    """Where a run stands after a step. Names and units are those of ``metrics.jsonl``.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps of the run.
        tokens: tokens trained on, padding included.
        loss: cross entropy of the step, nats a token; NaN where the step was skipped.
        lr: learning rate of the step.
        weight_decay: weight decay of the step.
        grad_norm: gradient norm before clipping.
        tokens_per_s: speed over the last steps.
        eta_s: seconds that remain at that speed.
        loss_smooth: exponential mean of the loss.
        skipped: steps of the run so far whose gradient was not finite; they left the weights.
        skipped_in_a_row: the same since the last step that counted.
        spike: standard deviations of the loss above ``loss_smooth``, where that is a spike.
        rolled_back_to: the step whose weights replaced those of this one.
        mfu: share of the device's peak that the model's arithmetic reaches; None: unknown.
        peak_memory_gb: most memory in use so far, 1e9 bytes: the GPU's, or the process's.
        data_wait_s: seconds that the step waited for its samples.
        found: what probes measured after this step, by name, such as ``val_loss``.
    """

    step: int
    steps: int
    tokens: int
    loss: float
    lr: float
    weight_decay: float
    grad_norm: float
    tokens_per_s: float
    eta_s: float
    loss_smooth: float = math.nan
    skipped: int = 0
    skipped_in_a_row: int = 0
    spike: float | None = None
    rolled_back_to: int | None = None
    mfu: float | None = None
    peak_memory_gb: float = 0.0
    data_wait_s: float = 0.0
    found: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the line of ``metrics.jsonl``: None if not finite, nothing if unknown."""
        seldom = {"spike": self.spike, "rolled_back_to": self.rolled_back_to, "mfu": self.mfu}
        row = {
            "step": self.step,
            "tokens": self.tokens,
            "loss": self.loss,
            "loss_smooth": self.loss_smooth,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "grad_norm": self.grad_norm,
            "skipped": self.skipped,
            **{name: value for name, value in seldom.items() if value is not None},
            "tokens_per_s": round(self.tokens_per_s, 1),
            "peak_memory_gb": round(self.peak_memory_gb, 3),
            "data_wait_s": round(self.data_wait_s, 6),
            **self.found,
        }
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }


END_EARLY = "end_early"
"""What a probe finds, with the reason, where the run is to end after this step."""

MACHINE = frozenset({"tokens_per_s", "mfu", "peak_memory_gb", "data_wait_s"})
"""The columns that depend on the machine; all others are the same for the same recipe."""

Sink = Callable[[StepReport], None]
"""Takes the report of each step: the console, a file, a tracker."""


class Probe(Protocol):
    """Measures something after a step, such as a validation loss."""

    def __call__(self, step: int, engine: Engine) -> Mapping[str, Any]:
        """Return what was measured by name; empty where it is not this probe's turn.

        Args:
            step: optimizer steps done.
            engine: holds the model; its weights and random states stay as they are.
        """
