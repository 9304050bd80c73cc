"""The shape of a model: named by size, written out in a recipe, or read off a checkpoint.

This file does not import torch, so a recipe can be checked without it.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from rwkvkit.config import Config
from rwkvkit.errors import DataError, RecipeError
from rwkvkit.resources import bundled

if TYPE_CHECKING:
    from torch import Tensor

Arch = Literal["x052", "x060", "x070"]
ARCHS: tuple[Arch, ...] = ("x052", "x060", "x070")

_RANKS = ("d_aaa_lora", "d_decay_lora", "d_gate_lora", "d_mix_lora", "d_mv_lora")


class ModelConfig(Config):
    """The shape of a model. What is left out is derived from ``arch`` and ``n_embd``."""

    arch: Arch
    """Architecture: x052 (RWKV-5), x060 (RWKV-6) or x070 (RWKV-7)."""
    n_layer: int = Field(gt=0)
    """Number of blocks."""
    n_embd: int = Field(gt=0)
    """Width of the model, a multiple of ``head_size``."""
    vocab_size: int = Field(default=65536, gt=0)
    """Number of token ids; 65536 for the World tokenizer."""
    head_size: int = Field(default=64, ge=2)
    """Width of a head."""
    dim_ffn: int = Field(default=0, ge=0)
    """Width inside the channel mixing; 0: 3.5 x n_embd to a multiple of 32, x070 4 x n_embd."""
    d_mix_lora: int = Field(default=0, ge=0)
    """x060: rank of the token-shift mixing; 0: 32."""
    d_decay_lora: int = Field(default=0, ge=0)
    """x060, x070: rank of the decay; 0: 64 for x060, 2.5 sqrt(n_embd) rounded for x070."""
    d_aaa_lora: int = Field(default=0, ge=0)
    """x070: rank of the in-context learning rate; 0: 2.5 sqrt(n_embd) rounded."""
    d_mv_lora: int = Field(default=0, ge=0)
    """x070: rank of the value residual; 0: 1.7 sqrt(n_embd) rounded."""
    d_gate_lora: int = Field(default=0, ge=0)
    """x070: rank of the gate; 0: 5 sqrt(n_embd) rounded."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an activation while training (x052, x060)."""
    head_qk: int = Field(default=0, ge=0)
    """Width of the HeadQK copy mechanism; 0: without it."""
    time_state: bool = False
    """Whether each layer has a trainable initial state (state tuning)."""

    @property
    def n_head(self) -> int:
        """Number of heads."""
        return self.n_embd // self.head_size

    @model_validator(mode="after")
    def _derive(self) -> "ModelConfig":
        if self.n_embd % self.head_size:
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of head_size {self.head_size}"
            )
        if self.dropout and self.arch == "x070":
            raise ValueError("x070 has no dropout, it exists for x052 and x060")
        derived = _derived(self.arch, self.n_embd)
        for name in _RANKS:
            if getattr(self, name) and name not in derived:
                raise ValueError(f"{self.arch} has no {name}")
        for name, value in derived.items():
            if not getattr(self, name):
                # Frozen for its users; here it is still being made.
                object.__setattr__(self, name, value)
        return self


def _derived(arch: Arch, n_embd: int) -> dict[str, int]:
    """The widths and ranks of a new model, by the reference's current formulas."""
    if arch == "x070":
        root = math.sqrt(n_embd)
        return {
            "dim_ffn": 4 * n_embd,
            "d_decay_lora": _rank(2.5 * root),
            "d_aaa_lora": _rank(2.5 * root),
            "d_mv_lora": _rank(1.7 * root),
            "d_gate_lora": _rank(5 * root),
        }
    dim_ffn = {"dim_ffn": max(32, int(3.5 * n_embd) // 32 * 32)}
    return dim_ffn if arch == "x052" else {**dim_ffn, "d_mix_lora": 32, "d_decay_lora": 64}


def _rank(x: float) -> int:
    return max(32, 32 * round(x / 32))


def sizes() -> dict[str, dict[str, int]]:
    """Return the published sizes by name (``x070-0.1b``), each with n_layer and n_embd."""
    table = YAML(typ="safe").load(bundled("configs") / "models.yaml")
    return {f"{arch}-{size}": shape for arch in ARCHS for size, shape in table.items()}


def config_of_size(size: str, **settings: Any) -> ModelConfig:
    """Return the config of a published size, with other fields as given.

    Args:
        size: architecture and size, ``x070-0.1b``.
        settings: further fields of :class:`ModelConfig`; they win over the size's.

    Raises:
        RecipeError: there is no such size, or a setting is not valid.
    """
    known = sizes()
    if size not in known:
        near = difflib.get_close_matches(size, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"unknown size {size!r}", where="model.size", hint=f"{hint}known: {', '.join(known)}"
        )
    try:
        return ModelConfig(**{"arch": size.partition("-")[0], **known[size], **settings})
    except ValidationError as error:
        raise RecipeError(
            reasons(error), where="model", hint="correct that setting, or leave it out"
        ) from error


def config_from_state_dict(
    state_dict: Mapping[str, "Tensor"], where: str | None = None
) -> ModelConfig:
    """Read architecture, sizes and ranks off the tensors of a checkpoint.

    Args:
        state_dict: tensors by name, as in a published .pth.
        where: the file they come from, for the message.

    Raises:
        DataError: the tensors are not those of a supported RWKV model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    arch = _arch(shapes, where)
    try:
        fields = _fields(arch, shapes)
    except (KeyError, IndexError) as error:
        lost = error.args[0] if isinstance(error, KeyError) else "with the usual axes"
        what = f"an {arch} checkpoint without a usable tensor {lost}"
        raise DataError(what, where=where, hint="the file may be cut or not whole") from None
    try:
        config = ModelConfig(**fields)
    except ValidationError as error:
        raise DataError(
            f"no usable {arch} model: {reasons(error)}",
            where=where,
            hint="the file may be damaged, or made by a changed trainer",
        ) from error
    width = shapes.get("blocks.0.att.output.weight", ())[1:]
    if width not in ((), (config.n_embd,)):
        raise DataError(
            f"an {arch} model with dim_att {width[0]} and n_embd {config.n_embd}",
            where=where,
            hint="only models with dim_att = n_embd are supported, as all published ones are",
        )
    return config


def reasons(error: ValidationError) -> str:
    """One sentence for all that pydantic found."""
    found = (
        ".".join(map(str, e["loc"])) + (": " if e["loc"] else "") + e["msg"].lower()
        for e in error.errors()
    )
    return "; ".join(text.replace("value error, ", "") for text in found)


def _arch(shapes: Mapping[str, tuple[int, ...]], where: str | None) -> Arch:
    att = "blocks.0.att."
    if att + "r_k" in shapes:
        return "x070"
    if att + "time_maa_x" in shapes:
        return "x060"
    if att + "time_mix_g" in shapes and shapes.get(att + "time_faaaa", ())[1:] > (1,):
        return "x052"
    if shapes and all(name.endswith(".time_state") for name in shapes):
        raise DataError(
            "holds tuned states only, no model",
            where=where,
            hint="merge it into the base checkpoint it was tuned on",
        )
    if att + "time_decay" in shapes:
        raise DataError(
            "an RWKV checkpoint of an unsupported version",
            where=where,
            hint="supported are x052 (RWKV-5.2), x060 (RWKV-6) and x070 (RWKV-7)",
        )
    raise DataError(
        "no RWKV checkpoint: it has no blocks.0.att tensors of a known architecture",
        where=where,
        hint="expected a flat dict of tensors such as blocks.0.att.key.weight",
    )


def _fields(arch: Arch, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    att, ffn = "blocks.0.att.", "blocks.0.ffn."
    layers = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    fields: dict[str, Any] = {
        "arch": arch,
        "n_layer": max(layers) + 1,
        "vocab_size": shapes["emb.weight"][0],
        "n_embd": shapes["emb.weight"][1],
        "head_size": shapes[att + ("r_k" if arch == "x070" else "time_faaaa")][1],
        "dim_ffn": shapes[ffn + "key.weight"][0],
        "head_qk": shapes.get("head_q.weight", (0,))[0],
        "time_state": att + "time_state" in shapes,
    }
    if arch == "x060":
        fields["d_mix_lora"] = shapes[att + "time_maa_w2"][1]
        fields["d_decay_lora"] = shapes[att + "time_decay_w2"][0]
    if arch == "x070":
        fields["d_decay_lora"] = shapes[att + "w2"][0]
        fields["d_aaa_lora"] = shapes[att + "a2"][0]
        fields["d_gate_lora"] = shapes[att + "g2"][0]
        if max(layers) > 0:
            fields["d_mv_lora"] = shapes["blocks.1.att.v2"][0]
    return fields
