"""The ``train.sampling`` section of a recipe."""

from typing import Literal

from rwkvkit.config import Config

Order = Literal["cubic"]


class SamplingConfig(Config):
    """Which tokens make a sample, and in which order samples come."""

    order: Literal["auto", "cubic"] = "auto"
    """`cubic`: runs of ctx_len tokens, wherever documents end, in the reference's order."""
