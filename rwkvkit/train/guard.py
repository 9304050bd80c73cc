"""What a run does about steps that go wrong: gradients that are not finite, and loss spikes."""

from typing import Literal

from pydantic import Field

from rwkvkit.config import Config, Count


class GuardConfig(Config):
    """What is done about steps that go wrong."""

    max_skipped: Count = 10
    """Steps in a row without a finite gradient that stop the run; fewer are skipped."""
    spike_sigma: float = Field(default=6.0, gt=0)
    """A loss this many standard deviations above its smoothed value is a spike."""
    on_spike: Literal["flag", "rollback"] = "flag"
    """flag reports a spike; rollback also takes the last checkpoint's weights and continues."""
