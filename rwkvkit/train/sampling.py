"""The ``train.sampling`` section of a recipe."""

from typing import Literal

from pydantic import Field, model_validator

from rwkvkit.config import Config

Order = Literal["cubic", "packed", "padded", "infctx"]


class SamplingConfig(Config):
    """Which tokens make a sample, and in which order samples come."""

    order: Literal["auto", "cubic", "packed", "padded", "infctx"] = "auto"
    """`cubic`: runs of ctx_len tokens; `packed`, `padded`: documents; `infctx`: long documents.

    auto: packed where the dataset has a loss mask, else cubic.
    """
    segments: int | None = Field(default=None, ge=1, le=1 << 20)
    """infctx: segments of ctx_len tokens a sample; as the longest document needs unless given."""
    truncate: int = Field(default=4, ge=0, le=1 << 20)
    """infctx: gradients stop after this many segments, which bounds memory; 0: they never do."""

    @model_validator(mode="after")
    def _only_infctx(self) -> "SamplingConfig":
        stray = self.model_fields_set & {"segments", "truncate"}
        if stray and self.order != "infctx":
            raise ValueError(f"{' and '.join(sorted(stray))} belong to order infctx")
        return self
