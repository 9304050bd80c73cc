"""The loss on held-out data: measuring it, keeping the best weights, ending when it stays."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwkvkit.errors import DataError
from rwkvkit.train.documents import PackedSamples
from rwkvkit.train.engine import Engine
from rwkvkit.train.group import Group, Solo
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.observe import END_EARLY
from rwkvkit.train.passes import losses


@dataclass(frozen=True)
class HeldOut:
    """What a model does on held-out data.

    Attributes:
        loss: mean cross entropy, nats a token.
        targets: tokens that were predicted and count.
        samples: samples they stand in.
    """

    loss: float
    targets: int
    samples: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and keep no gradients; it goes back to its mode after."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def held_out_loss(
    model: nn.Module,
    samples: PackedSamples,
    *,
    micro_bsz: int,
    max_samples: int,
    group: Group | None = None,
) -> HeldOut:
    """Measure the cross entropy on held-out samples, each process on its share of them.

    Nothing is drawn and no weight changes. Every process makes the same number of passes.

    Args:
        model: the model, on its device.
        samples: see ``validation_samples``.
        micro_bsz: samples a pass.
        max_samples: the most samples to take; the first of a fixed order.
        group: the processes of the run; this one alone unless given.

    Raises:
        DataError: the mask counts none of their tokens.
    """
    group = group or Solo()
    device = next(model.parameters()).device
    count = min(max_samples, len(samples.rows))
    micro_bsz = min(micro_bsz, -(-count // group.world))
    _check_counted(samples, count)
    total = counted = 0.0
    with evaluating(model):
        for first in range(
            group.rank * micro_bsz, count + group.rank * micro_bsz, micro_bsz * group.world
        ):
            batch = samples.read(1 + first, micro_bsz)
            assert batch.mask is not None
            batch.mask[max(0, count - first) :] = 0
            found = sum(loss.item() for loss in losses(model, batch.to(device), truncate=1))
            total += found * batch.counted
            counted += batch.counted
    total, counted = group.sum(total), group.sum(counted)
    return HeldOut(total / max(1.0, counted), round(counted), count)


def _check_counted(samples: PackedSamples, count: int) -> None:
    """Refuse samples of which no target counts: their loss would be 0, the best there is."""
    if any(samples.read(number, 1).counted for number in range(1, count + 1)):
        return
    raise DataError(
        f"the mask counts no token of the first {count:,} of {len(samples.rows):,} samples",
        where=samples.data.prefix,
        hint="take more of them: --max-samples, or train.evaluate.max_samples in a recipe",
    )


class Evaluation:
    """A probe: the loss on held-out data, ``val_loss`` and ``val_ppl``, every few steps.

    The weights with the smallest loss are kept. What came before a resume is read off the run's
    ``metrics.jsonl``.

    Args:
        samples: see ``validation_samples``.
        every: optimizer steps between evaluations; one comes after the last step too.
        steps: of the run.
        micro_bsz: samples a pass.
        max_samples: see ``held_out_loss``.
        patience: evaluations without a smaller loss after which the run is to end, if any.
        metrics: the run's ``metrics.jsonl``.
        best: where the best weights go.
        group: the processes of the run.
        report: takes a line for people after each evaluation.

    Raises:
        DataError: see ``held_out_loss``.
    """

    def __init__(
        self,
        samples: PackedSamples,
        *,
        every: int,
        steps: int,
        micro_bsz: int,
        max_samples: int,
        patience: int | None,
        metrics: Path,
        best: Path,
        group: Group,
        report: Callable[[str], None],
    ) -> None:
        _check_counted(samples, min(max_samples, len(samples.rows)))
        self._samples, self._every, self._steps = samples, every, steps
        self._micro_bsz, self._max_samples = micro_bsz, max_samples
        self._patience, self._metrics, self._path = patience, metrics, best
        self._group, self._report = group, report
        self._best: tuple[float, int] | None = None
        self._since = -1  # evaluations since the best; -1: not read yet

    def __call__(self, step: int, engine: Engine) -> Mapping[str, Any]:
        """Evaluate if it is time; see ``Probe``."""
        if step % self._every and step != self._steps:
            return {}
        if self._since < 0:
            self._remember(step)
        found = held_out_loss(
            engine.model,
            self._samples,
            micro_bsz=self._micro_bsz,
            max_samples=self._max_samples,
            group=self._group,
        )
        better = self._take(step, found.loss)
        if better:
            with self._group.together():
                engine.write_model(self._path)
        assert self._best is not None or not math.isfinite(found.loss)
        said = f"step {step:,}: val_loss {found.loss:.4f}, perplexity {found.perplexity:,.2f}"
        if not better and self._best:
            said += f"; the best is {self._best[0]:.4f} of step {self._best[1]:,}"
        self._report(said)
        result: dict[str, Any] = {"val_loss": found.loss, "val_ppl": found.perplexity}
        if self._patience and self._since >= self._patience:
            result[END_EARLY] = f"{self._since} evaluations without a smaller val_loss"
            if self._best:
                result[END_EARLY] += f" than {self._best[0]:.4f} of step {self._best[1]:,}"
            self._report(f"step {step:,}: the run ends early: {result[END_EARLY]}")
        return result

    def _take(self, step: int, loss: float) -> bool:
        """Take note of a loss; return whether it is the smallest."""
        if math.isfinite(loss) and (self._best is None or loss < self._best[0]):
            self._best, self._since = (loss, step), 0
            return True
        self._since += 1
        return False

    def _remember(self, step: int) -> None:
        """Take note of the losses before ``step``."""
        self._since = 0
        rows = read_metrics(self._metrics) if self._group.rank == 0 else []
        seen = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
        for at, loss in self._group.gather(seen)[0]:
            if at < step:
                self._take(at, math.nan if loss is None else loss)
