"""The ``train.evaluate`` section of a recipe."""

from typing import Annotated

from pydantic import Field

from rwkvkit.config import Config, Count, Seed

Prompt = Annotated[str, Field(min_length=1)]


class EvaluateConfig(Config):
    """What is measured on held-out data while training, and which texts are sampled.

    Held-out data is evaluated where there is any; texts are sampled where there are prompts.
    """

    data: str | None = None
    """The held-out dataset (the path of its .bin and .idx); what `split` made unless given."""
    every: Count | None = None
    """Optimizer steps between evaluations; those between checkpoints unless given."""
    max_samples: Count = 256
    """The most samples that are evaluated, the same each time."""
    patience: int | None = Field(default=None, ge=1)
    """The run ends after this many evaluations without a smaller loss; never unless given."""
    prompts: tuple[Prompt, ...] = Field(default=(), strict=False)
    """Texts to continue at each evaluation; they go to samples.jsonl."""
    max_tokens: int = Field(default=64, ge=1, le=1 << 20)
    """Length of such a text in tokens, unless the model ends the document before."""
    temperature: float = Field(default=1.0, ge=0)
    """0 always takes the likeliest token."""
    top_p: float = Field(default=0.7, gt=0, le=1)
    """Share of the probability from which tokens are drawn."""
    seed: Seed = 0
    """Seed of the random choices in these texts."""
