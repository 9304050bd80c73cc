"""Learning rate and weight decay as pure functions of the step."""

from math import ceil, cos, exp, log, pi

from rwkvkit.errors import UsageError

_WHERE = "Schedule"


class Schedule:
    """The reference's schedules of learning rate and weight decay.

    With ``exit_tokens`` the learning rate falls along a cosine over the tokens that follow the
    warmup; with ``total_steps`` it falls exponentially (linearly where an end is 0) over the
    steps that follow it. During warmup it is multiplied by ``0.01 + 0.99 · step / warmup_steps``.

    Args:
        lr_init: learning rate after warmup.
        lr_final: learning rate at the end.
        warmup_steps: steps of warmup, 0 for none.
        total_steps: optimizer steps of the run, instead of ``exit_tokens``.
        exit_tokens: tokens of the run, instead of ``total_steps``.
        tokens_per_step: tokens an optimizer step sees (ctx_len · global batch); needed with
            ``exit_tokens``.
        weight_decay: weight decay at the start, for the groups that decay.
        weight_decay_final: weight decay at the end, reached exponentially; None keeps it.

    Attributes:
        steps: optimizer steps of the run.

    Raises:
        UsageError: not exactly one end is given, or the values contradict each other.
    """

    def __init__(
        self,
        *,
        lr_init: float,
        lr_final: float,
        warmup_steps: int,
        total_steps: int | None = None,
        exit_tokens: int | None = None,
        tokens_per_step: float | None = None,
        weight_decay: float = 0.0,
        weight_decay_final: float | None = None,
    ) -> None:
        if warmup_steps < 0 or lr_init < 0 or lr_final < 0 or weight_decay < 0:
            raise UsageError(
                "learning rates, weight decay and warmup_steps cannot be negative",
                where=_WHERE,
                hint="0 is without weight decay, or without a warmup",
            )
        if weight_decay_final is not None and not (weight_decay > 0 and weight_decay_final > 0):
            raise UsageError(
                "weight_decay_final is reached exponentially: it and weight_decay must be above 0",
                where=_WHERE,
                hint="leave weight_decay_final out to keep weight_decay as it is",
            )
        self._lr_init, self._lr_final = lr_init, lr_final
        self._weight_decay, self._weight_decay_final = weight_decay, weight_decay_final
        self._warmup_steps = warmup_steps
        self._by_tokens = exit_tokens is not None
        if exit_tokens is not None and total_steps is None:
            if not tokens_per_step:
                raise UsageError(
                    "exit_tokens needs tokens_per_step",
                    where=_WHERE,
                    hint="it is ctx_len times the global batch",
                )
            self._end = exit_tokens / tokens_per_step
        elif total_steps is not None and exit_tokens is None:
            self._end = float(total_steps)
        else:
            raise UsageError(
                "a schedule ends after total_steps or after exit_tokens: give one",
                where=_WHERE,
                hint="exit_tokens is for a cosine, total_steps for an exponential fall",
            )
        if self._end <= 0:
            raise UsageError(
                "a schedule needs at least one step",
                where=_WHERE,
                hint="give total_steps or exit_tokens above 0",
            )
        self.steps = ceil(self._end)

    def progress(self, step: int) -> float:
        """Return the fraction of the run after warmup that lies before ``step``, 0 to 1."""
        after_warmup = self._end - self._warmup_steps
        if after_warmup <= 0:
            return float(step >= self.steps)
        done = step - self._warmup_steps + (0 if self._by_tokens else 1)
        return min(max(done / after_warmup, 0.0), 1.0)

    def lr(self, step: int) -> float:
        """Return the learning rate of ``step`` (from 0), before a group's ``lr_scale``."""
        progress = self.progress(step)
        if self._by_tokens:
            mean, swing = (self._lr_init + self._lr_final) / 2, (self._lr_init - self._lr_final) / 2
            rate = mean + swing * cos(pi * progress)
        elif self._lr_init == 0 or self._lr_final == 0:
            rate = self._lr_init + (self._lr_final - self._lr_init) * progress
        else:
            rate = self._lr_init * exp(log(self._lr_final / self._lr_init) * progress)
        if step < self._warmup_steps:
            rate *= 0.01 + 0.99 * step / self._warmup_steps
        return rate

    def weight_decay(self, step: int) -> float:
        """Return the weight decay of ``step`` for the groups that decay."""
        if self._weight_decay_final is None:
            return self._weight_decay
        change = log(self._weight_decay_final / self._weight_decay)
        return self._weight_decay * exp(change * self.progress(step))
