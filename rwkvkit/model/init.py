"""The initial weights, all of them in one table.

C n_embd, D = C width of the time mixing, H heads, N head size, L layers, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rwkvkit.errors import DataError
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.rwkv import RWKV


@dataclass(frozen=True)
class _Place:
    """A tensor to fill: its shape, and where in the model it stands."""

    config: ModelConfig
    layer: int
    shape: tuple[int, ...]
    generator: torch.Generator

    @property
    def r01(self) -> float:
        """0 in the first layer, 1 in the last (0 where there is only one)."""
        return self.layer / max(1, self.config.n_layer - 1)

    @property
    def r10(self) -> float:
        """1 in the first layer, falling to 1/L in the last."""
        return 1 - self.layer / self.config.n_layer

    @property
    def depth(self) -> float:
        """1/L in the first layer, 1 in the last."""
        return (self.layer + 1) / self.config.n_layer

    @property
    def n(self) -> Tensor:
        """Channel numbers 0 .. C-1, in float64 so that only the result is rounded."""
        return torch.arange(self.config.n_embd, dtype=torch.float64)

    @property
    def d(self) -> Tensor:
        """Channel numbers from 0 to just under 1."""
        return self.n / self.config.n_embd

    @property
    def ramp(self) -> Tensor:
        """Channel numbers from 0 to 1."""
        return self.n / (self.config.n_embd - 1)

    @property
    def lin(self) -> Tensor:
        """Channel numbers from -1/2 to 1/2."""
        return self.ramp - 0.5

    @property
    def z(self) -> Tensor:
        """From -1 to 1 within each head, flat in the middle."""
        middle = (self.config.head_size - 1) / 2
        t = (self.n % self.config.head_size - middle) / middle
        return t * t.abs()


_Fill = Callable[[_Place], Tensor]


class _Rule(NamedTuple):
    pattern: str
    text: str
    fill: _Fill


def _const(value: float) -> _Fill:
    return lambda p: torch.full(p.shape, value)


def _uniform(bound: float) -> _Fill:
    return lambda p: torch.empty(p.shape).uniform_(-bound, bound, generator=p.generator)


def _orthogonal(gain: float | Callable[[_Place], float]) -> _Fill:
    def fill(p: _Place) -> Tensor:
        scale = gain(p) if callable(gain) else gain
        return nn.init.orthogonal_(torch.empty(p.shape), gain=scale, generator=p.generator)

    return fill


def _head_gain(p: _Place) -> float:
    return 0.5 * math.sqrt(max(1.0, p.config.vocab_size / p.config.n_embd))


def _lora_gain(p: _Place) -> float:
    return 0.1 * max(1.0, math.sqrt(p.shape[0] / p.shape[1]))


# The first pattern that matches a name fills the tensor. `blocks.*.` is understood before `att.`
# and `ffn.`. Symbols as in _Place: r01 and r10 by layer, d, ramp, lin and z by channel.
_TABLE: tuple[_Rule, ...] = (
    _Rule("emb.weight", "uniform ±1e-4", _uniform(1e-4)),
    _Rule("head.weight", "orthogonal, gain 0.5·√(V/C), at least 0.5", _orthogonal(_head_gain)),
    _Rule("head_q.weight", "0", _const(0)),
    _Rule("head_k.weight", "orthogonal, gain 0.1", _orthogonal(0.1)),
    _Rule("att.ln_x.weight", "((l+1)/L)^0.7", lambda p: torch.full(p.shape, p.depth**0.7)),
    _Rule("*ln*.weight", "1", _const(1)),
    _Rule("*ln*.bias", "0", _const(0)),
    _Rule("att.output.weight", "0", _const(0)),
    _Rule("ffn.value.weight", "0", _const(0)),
    _Rule("ffn.receptance.weight", "0", _const(0)),
    _Rule("att.key.weight", "orthogonal, gain 0.1", _orthogonal(0.1)),
    _Rule("att.gate.weight", "orthogonal, gain 0.1", _orthogonal(0.1)),
    _Rule("*.weight", "orthogonal", _orthogonal(1.0)),
    _Rule("att.time_state", "0", _const(0)),
    # x052
    _Rule("att.time_mix_k", "d^r10", lambda p: p.d**p.r10),
    _Rule("att.time_mix_v", "d^r10 + 0.3·r01", lambda p: p.d**p.r10 + 0.3 * p.r01),
    _Rule("att.time_mix_[rg]", "d^(r10/2)", lambda p: p.d ** (0.5 * p.r10)),
    _Rule("ffn.time_mix_[kr]", "d^r10", lambda p: p.d**p.r10),
    # x052, x060
    _Rule(
        "att.time_decay", "-6 + 5·ramp^(0.7 + 1.3·r01)",
        lambda p: -6 + 5 * p.ramp ** (0.7 + 1.3 * p.r01),
    ),
    _Rule(
        "att.time_faaaa", "r01·(1 - ramp) + 0.1·((n+1)%3 - 1)",
        lambda p: p.r01 * (1 - p.ramp) + 0.1 * ((p.n + 1) % 3 - 1),
    ),
    # x060
    _Rule("att.time_maa_[xwk]", "1 - d^r10", lambda p: 1 - p.d**p.r10),
    _Rule("att.time_maa_v", "1 - (d^r10 + 0.3·r01)", lambda p: 1 - (p.d**p.r10 + 0.3 * p.r01)),
    _Rule("att.time_maa_[rg]", "1 - d^(r10/2)", lambda p: 1 - p.d ** (0.5 * p.r10)),
    _Rule("att.time_maa_w1", "0", _const(0)),
    _Rule("att.time_maa_w2", "uniform ±0.01", _uniform(0.01)),
    _Rule("att.time_decay_w1", "0", _const(0)),
    _Rule("att.time_decay_w2", "uniform ±0.01", _uniform(0.01)),
    _Rule("ffn.time_maa_[kr]", "1 - d^(r10³)", lambda p: 1 - p.d ** (p.r10**3)),
    # x070
    _Rule("att.x_[rg]", "1 - d^(0.2·r10)", lambda p: 1 - p.d ** (0.2 * p.r10)),
    _Rule("att.x_[wa]", "1 - d^(0.9·r10)", lambda p: 1 - p.d ** (0.9 * p.r10)),
    _Rule("att.x_[kv]", "1 - d^(0.7·r10)", lambda p: 1 - p.d ** (0.7 * p.r10)),
    _Rule(
        "att.w0", "-5.5 + 6·ramp^(1 + r01^0.3) + 2.5·z",
        lambda p: -6 + 6 * p.ramp ** (1 + p.r01**0.3) + 0.5 + 2.5 * p.z,
    ),
    _Rule("att.a0", "-0.19 + 0.3·z + 0.4·lin", lambda p: -0.19 + 0.3 * p.z + 0.4 * p.lin),
    _Rule("att.v0", "0.73 - 0.4·lin", lambda p: 0.73 - 0.4 * p.lin),
    _Rule("att.[wavg]1", "0", _const(0)),
    _Rule("att.[wavg]2", "orthogonal, gain 0.1·max(1, √(rows/cols))", _orthogonal(_lora_gain)),
    _Rule("att.k_k", "0.71 - 0.1·lin", lambda p: 0.71 - 0.1 * p.lin),
    _Rule("att.k_a", "1.02", _const(1.02)),
    _Rule("att.r_k", "-0.04", _const(-0.04)),
    _Rule("ffn.x_k", "1 - d^(r10⁴)", lambda p: 1 - p.d ** (p.r10**4)),
)  # fmt: skip


def init_weights(
    config: ModelConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Draw the weights of a new model.

    Each tensor has a random generator of its own, seeded by ``seed`` and its name: it does not
    change when another tensor is added, left out or drawn earlier.

    Args:
        config: the model's shape.
        seed: any integer.
        progress: called with the number of tensors drawn so far, and of all.

    Returns:
        float32 tensors by name, as a checkpoint holds them.
    """
    weights: dict[str, Tensor] = {}
    shapes = weight_shapes(config)
    for name, shape in shapes.items():
        place = _Place(config, _layer(name), shape, _generator(seed, name))
        weights[name] = _rule(name).fill(place).float().reshape(shape)
        progress(len(weights), len(shapes))
    return weights


class InitRow(NamedTuple):
    """A line of the printed table.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        rule: how a new one is made.
        mean: of its values.
        std: of its values.
    """

    name: str
    shape: tuple[int, ...]
    rule: str
    mean: float
    std: float


def init_table(weights: ModelConfig | Mapping[str, Tensor]) -> list[InitRow]:
    """Return the table of initial weights, one row a tensor.

    Args:
        weights: tensors by name; or a config, whose weights are then drawn with seed 0.

    Raises:
        DataError: a tensor that no RWKV model has.
    """
    if isinstance(weights, ModelConfig):
        weights = init_weights(weights, 0)
    rows = []
    for name, tensor in weights.items():
        values = tensor.detach().float()
        mean, std = values.mean().item(), values.std(correction=0).item()
        rows.append(InitRow(name, tuple(tensor.shape), _rule(name).text, mean, std))
    return rows


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model, by name, without making one."""
    with torch.device("meta"):
        model = RWKV(config)
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def _rule(name: str) -> _Rule:
    local = name.split(".", 2)[2] if name.startswith("blocks.") else name
    for rule in _TABLE:
        if fnmatchcase(local, rule.pattern):
            return rule
    raise DataError(
        f"{name} is no tensor of an RWKV model",
        where="weights",
        hint="give the weights of one, such as blocks.0.att.key.weight",
    )


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else 0


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
