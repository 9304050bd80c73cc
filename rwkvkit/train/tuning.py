"""The ``train.tuning`` section of a recipe: what of a model is trained, and how."""

from typing import Literal

from pydantic import Field, model_validator

from rwkvkit.config import Config

Method = Literal["full", "lora", "dora", "pissa", "miss", "state"]

_OF_ADAPTERS = ("rank", "alpha", "dropout", "targets", "quantize")


class TuningConfig(Config):
    """Which part of the model is trained.

    A pattern is a name or its start, with or without `blocks.N.`, and may hold `*`, `?` and `[…]`:
    `emb`, `att.key`, `blocks.0`, `blocks.[0-3].ffn`, `*.ln*`.
    """

    method: Method = "full"
    """The weights themselves, an adapter beside them, or the initial state of documents."""
    rank: int = Field(default=32, ge=1, le=1 << 14)
    """Adapters: rank of each matrix's change."""
    alpha: int | None = Field(default=None, ge=1)
    """Adapters except miss: the change is scaled by alpha/rank; 2 x rank unless given, for pissa
    rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Adapters: share of the inputs that the adapter does not see."""
    targets: list[str] = Field(default=["att.*", "ffn.*"], min_length=1)
    """Adapters: patterns of the matrices in the blocks that get one."""
    train: list[str] = Field(default=[])
    """Patterns of the base's parameters that train; all with full, none with an adapter."""
    freeze: list[str] = Field(default=[])
    """Patterns of parameters that stay unchanged, among those that would train."""
    lr_scale: dict[str, float] = Field(default={})
    """Factor on the learning rate by pattern; of several that match, the first."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Adapters: how the matrices under them are kept in memory."""

    @model_validator(mode="after")
    def _fitting(self) -> "TuningConfig":
        if not self.is_adapter and (odd := self.model_fields_set & set(_OF_ADAPTERS)):
            raise ValueError(f"{', '.join(sorted(odd))}: only an adapter has that (method: lora)")
        if self.method == "state" and self.train:
            raise ValueError("state tuning trains the states alone: leave train out")
        if self.is_adapter and self.freeze and not self.train:
            raise ValueError("nothing of the base trains beside an adapter: leave freeze out")
        if self.method == "miss" and self.alpha is not None:
            raise ValueError("miss has no alpha")
        if self.method == "pissa" and self.quantize != "none":
            raise ValueError("pissa takes part of each matrix out: it needs quantize: none")
        if any(scale <= 0 for scale in self.lr_scale.values()):
            raise ValueError("lr_scale takes factors above 0; freeze keeps parameters as they are")
        return self

    @property
    def is_adapter(self) -> bool:
        """Whether small matrices are trained beside the weights."""
        return self.method not in ("full", "state")

    @property
    def effective_alpha(self) -> int:
        """``alpha``, or what stands for it."""
        return self.alpha or (self.rank if self.method == "pissa" else 2 * self.rank)
