"""Which parameters share a learning rate and a weight decay, and AdamW over them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rwkvkit.train.config import TrainConfig
from rwkvkit.train.patterns import matches, plain_name


class _Rule(NamedTuple):
    matches: Callable[[str, Tensor], bool]
    lr_scale: float
    decays: bool


# The first rule that matches a parameter's name wins. Names of one architecture do not occur in
# another, so one table serves x052, x060 (`time_...`) and x070 (`att.w0`, `att.x_r`, ...).
_RULES = (
    _Rule(lambda name, _: "_w1" in name or "_w2" in name, 1.0, False),
    _Rule(lambda name, _: "time_state" in name, 1.0, True),
    _Rule(lambda name, _: "time_mix" in name or "time_maa" in name, 1.0, False),
    _Rule(lambda name, _: "time_faaaa" in name, 1.0, False),
    _Rule(lambda name, _: "time_decay" in name or "att.w0" in name, 2.0, False),
    _Rule(
        lambda name, p: p.squeeze().dim() >= 2 and (".weight" in name or ".miss_block" in name),
        1.0,
        True,
    ),
    _Rule(lambda name, _: True, 1.0, False),
)


def optimizer_groups(
    model: nn.Module, *, weight_decay: float, lr_scale: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into optimizer groups, as the reference does.

    Matrices decay; vectors, low-rank factors and mixing weights do not; base decays learn twice as
    fast. Frozen parameters are left out, and so are groups without a parameter.

    Args:
        model: an RWKV model of any architecture.
        weight_decay: of the groups that decay.
        lr_scale: factors on the learning rate by name pattern, beside the reference's own; the
            first pattern that matches counts.

    Returns:
        Dicts with ``names``, ``params`` (in the same order), ``lr_scale`` (the factor on the
        schedule's learning rate) and ``weight_decay``, ready for ``torch.optim.AdamW``.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule = next(rule for rule in _RULES if rule.matches(name, parameter))
        scale = rule.lr_scale * _factor(lr_scale or {}, plain_name(name))
        group = groups.setdefault(
            (scale, rule.decays),
            {
                "names": [],
                "params": [],
                "lr_scale": scale,
                "weight_decay": weight_decay if rule.decays else 0.0,
            },
        )
        group["names"].append(name)
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_adamw(
    groups: list[dict[str, Any]], params: Iterable[Tensor], config: TrainConfig, *, fused: bool
) -> torch.optim.AdamW:
    """Return AdamW over groups, each with its ``lr_scale`` and whether it ``decays``.

    Args:
        groups: from :func:`optimizer_groups`.
        params: what is trained in the place of their parameters, such as float32 masters; in order.
        config: the recipe's settings.
        fused: whether one kernel updates many tensors.
    """
    remaining = iter(params)
    own = [
        {
            "params": [next(remaining) for _ in group["params"]],
            "lr_scale": group["lr_scale"],
            "decays": group["weight_decay"] > 0,
        }
        for group in groups
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(own, betas=betas, eps=config.adam_eps, fused=fused)


def set_rates(optimizer: Any, *, lr: float, weight_decay: float) -> None:
    """Set the rates of a step in an optimizer from :func:`make_adamw`, or in one around it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def _factor(scales: Mapping[str, float], name: str) -> float:
    return next((scale for pattern, scale in scales.items() if matches(pattern, name)), 1.0)
