"""What a recipe may say."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from rwkvkit.config import Config, Seed
from rwkvkit.data.stages import Stage
from rwkvkit.errors import RecipeError
from rwkvkit.model.config import Arch, ModelConfig, config_of_size, reasons
from rwkvkit.train.config import TrainConfig


class ModelSpec(Config):
    """The ``model`` section: a size by name or by its numbers, and the weights to start from."""

    size: str | None = None
    """Architecture and size, such as ``x070-0.1b``. The sizes (n_layer x n_embd): ``0.1b``
    (12 x 768), ``0.4b`` (24 x 1024), ``1.5b`` (24 x 2048), ``3b`` (32 x 2560), ``7b``
    (32 x 4096)."""
    arch: Arch | None = None
    """``x052``, ``x060`` or ``x070``, instead of ``size``."""
    n_layer: int | None = Field(default=None, ge=1, le=1000)
    """Number of blocks; that of ``size`` or ``weights`` unless given, else required."""
    n_embd: int | None = Field(default=None, ge=1, le=1 << 17)
    """Width, a multiple of ``head_size``; that of ``size`` or ``weights`` unless given, else
    required."""
    vocab_size: int | None = Field(default=None, ge=1, le=1 << 24)
    """Number of token ids, 65536 for the World tokenizer; that of ``weights``, else 65536, unless
    given."""
    head_size: int | None = Field(default=None, ge=2, le=1 << 10)
    """Channels of a head, 64 in every published model; that of ``weights``, else 64, unless
    given."""
    dim_ffn: int | None = Field(default=None, ge=1, le=1 << 20)
    """Width of the feed-forward layer; that of ``weights``, else it follows from ``arch`` and
    ``n_embd``, unless given."""
    head_qk: int | None = Field(default=None, ge=0, le=1 << 17)
    """Width of the HeadQK option, 0 for none; that of ``weights``, else 0, unless given."""
    weights: str | None = None
    """A checkpoint to start from; its sizes are read off it, and checked against those here."""
    grow_from: str | None = None
    """A smaller checkpoint whose weights are enlarged to the new size."""

    @model_validator(mode="after")
    def _one_start(self) -> "ModelSpec":
        if self.weights and self.grow_from:
            raise ValueError("weights and grow_from both say where to start: give one")
        if self.size and self.arch:
            raise ValueError("size names the architecture already: leave arch out")
        return self

    def given(self) -> dict[str, Any]:
        """Return the sizes the recipe states, by ``ModelConfig`` field.

        Raises:
            RecipeError: no such size.
        """
        stated = self.model_dump(exclude={"size", "weights", "grow_from"}, exclude_none=True)
        if self.size:
            named = config_of_size(self.size)
            stated = {"arch": named.arch, "n_layer": named.n_layer, "n_embd": named.n_embd} | stated
        return stated

    def resolve(self) -> ModelConfig:
        """Return the configuration of a new model.

        Raises:
            RecipeError: a size is unknown, missing, or contradicts another.
        """
        stated = self.given()
        missing = [key for key in ("arch", "n_layer", "n_embd") if key not in stated]
        if missing:
            raise RecipeError(
                f"the model's {' and '.join(missing)} are not given",
                where="model",
                hint="give model.size (such as x070-0.1b), or arch, n_layer and n_embd",
            )
        try:
            return ModelConfig(**stated)
        except ValidationError as error:
            raise RecipeError(
                reasons(error), where="model", hint="correct the sizes, or give model.size"
            ) from error


class SampleSpec(Config):
    """The ``sample`` section: text to generate when training is done."""

    prompt: str = Field(default="\n", min_length=1)
    """What the text continues."""
    max_tokens: int = Field(default=100, ge=1, le=1 << 30)
    """Length in tokens, unless the model ends the document before."""
    temperature: float = Field(default=1.0, ge=0)
    """0 always takes the likeliest token."""
    top_p: float = Field(default=0.7, gt=0, le=1)
    """Share of the probability from which tokens are drawn."""
    seed: Seed = 0
    """Seed of the random choices."""


class Recipe(Config):
    """A recipe: data, model and training in one file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run and its folder."""
    seed: Seed = 42
    """Seeds the shuffle, the initial weights and dropout."""
    ctx_len: int = Field(ge=1, le=1 << 30)
    """Tokens a training sample; everything that needs it derives from here."""
    prepare: list[Stage] | None = Field(default=None, min_length=1)
    """The stages that make the dataset, in order."""
    data: str | None = None
    """A dataset that exists already (the path of its .bin and .idx), instead of ``prepare``."""
    model: ModelSpec | None = None
    """Which model."""
    train: TrainConfig | None = None
    """How to train it."""
    sample: SampleSpec | None = None
    """Text to generate when training is done."""
    run_dir: str | None = None
    """The run's folder; ``out/NAME`` unless given."""

    @model_validator(mode="after")
    def _one_dataset(self) -> "Recipe":
        if self.prepare is not None and self.data is not None:
            raise ValueError("prepare makes the dataset and data names one: give one of them")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run_dir or f"out/{self.name}")

    def stated(self) -> dict[str, Any]:
        """Return every key that has a value, defaults included, as JSON has it."""
        return {
            **self.model_dump(mode="json", exclude_none=True, exclude={"prepare"}),
            "prepare": [
                {stage.key: stage.model_dump(mode="json", exclude_none=True)}
                for stage in self.prepare or []
            ],
        }
