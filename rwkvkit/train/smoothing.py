"""The smoothed loss of a run, and which losses stand out from it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

_DECAY = 0.98  # a memory of about 50 steps
_SETTLED = 20  # losses before the spread means something
_LEAST_SPREAD = 0.01  # of the smoothed loss: a loss that hardly moves has no spikes


class SmoothedLoss:
    """An exponential mean of the loss and its spread, each corrected for its start.

    It is a function of the losses in order, so a run that is resumed has the same one: give it the
    rows of ``metrics.jsonl``. A spike enters at the limit that it broke, so it moves little.

    Args:
        spike_sigma: standard deviations above the mean from which a loss is a spike.
        rows: what the run has measured so far.
    """

    def __init__(self, spike_sigma: float, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._spike_sigma = spike_sigma
        self._count = 0
        self._mean = self._square = 0.0
        for row in rows:
            self.add(row["loss"])

    @property
    def value(self) -> float | None:
        """The mean, None before the first finite loss."""
        return self._mean / self._weight if self._count else None

    def add(self, loss: float | None) -> float | None:
        """Take the loss of a step; one that is not finite, or None, changes nothing.

        Returns:
            How many standard deviations it stands above the mean if that makes it a spike, or None.
        """
        if loss is None or not math.isfinite(loss):
            return None
        deviation, spike = 0.0, None
        if self._count:
            mean = self._mean / self._weight
            deviation = loss - mean
            sigma = max(math.sqrt(self._square / self._weight), _LEAST_SPREAD * abs(mean))
            limit = self._spike_sigma * sigma
            if self._count >= _SETTLED and deviation > limit:
                spike = deviation / sigma if sigma else math.inf
                deviation, loss = limit, mean + limit
        self._count += 1
        self._mean = _DECAY * self._mean + (1 - _DECAY) * loss
        self._square = _DECAY * self._square + (1 - _DECAY) * deviation**2
        return spike

    @property
    def _weight(self) -> float:
        """The sum of the weights that an exponential mean has given so far."""
        return 1 - _DECAY**self._count
