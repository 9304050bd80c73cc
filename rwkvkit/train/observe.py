"""What a run tells after each step, who measures more, and who listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rwkvkit.train.engine import Engine


@dataclass(frozen=True)
class StepReport:
    """Where a run stands after a step.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps of the run.
        tokens: tokens trained on.
        loss: cross entropy of the step, nats a token.
        lr: learning rate of the step.
        weight_decay: weight decay of the step.
        grad_norm: gradient norm before clipping.
        tokens_per_s: speed over the last steps.
        eta_s: seconds that remain at that speed.
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
    found: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the line of ``metrics.jsonl``; names and units are those of the attributes."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": self.loss,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "grad_norm": self.grad_norm,
            "tokens_per_s": round(self.tokens_per_s, 1),
            **self.found,
        }


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
