"""PiSSA's arithmetic: what an adapter that trains a part of the base is against the whole base."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Pissa:
    """The largest singular part B₀ A₀ of each matrix, which PiSSA takes out of it and trains.

    The change against the base as it was is an adapter of twice the rank: ``B A - B₀ A₀``.

    Args:
        model: with the adapter injected: its matrices have lost B₀ A₀.
        config: peft's configuration.
        initial: A₀ and B₀ by peft's names; copied.
    """

    def __init__(self, model: nn.Module, config: Any, initial: Mapping[str, Tensor]) -> None:
        self._model, self._config = model, config
        self._initial = {name: tensor.detach().cpu().clone() for name, tensor in initial.items()}

    def config_against_base(self) -> Any:
        """Return peft's configuration of the adapter of twice the rank."""
        config = self._config
        return type(config)(
            r=2 * config.r, lora_alpha=2 * config.lora_alpha,
            lora_dropout=config.lora_dropout, target_modules=config.target_modules,
        )  # fmt: skip

    def against_base(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return [A; A₀] and [B, -B₀] by name, in the precision of the start."""
        joined = {}
        for name, tensor in own.items():
            start = self._initial[name]
            now = tensor.detach().cpu().to(start.dtype)
            is_a = ".lora_A." in name
            joined[name] = torch.cat([now, start], 0) if is_a else torch.cat([now, -start], 1)
        return joined

    def split(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take [A; A₀] and [B, -B₀] apart; the matrices lose B₀ A₀ as they did in that run."""
        rank = self._config.r
        own, start = {}, {}
        for name, tensor in saved.items():
            first, second = tensor.split(rank, 0 if ".lora_A." in name else 1)
            own[name] = first.contiguous()
            start[name] = second.contiguous() if ".lora_A." in name else -second
        scale = self._config.lora_alpha / rank
        for name in (name for name in start if ".lora_A." in name):
            module = name.partition(".lora_A.")[0]
            other = name.replace(".lora_A.", ".lora_B.")
            if all(torch.equal(start[key], self._initial[key]) for key in (name, other)):
                continue  # a machine that computes other singular vectors comes here
            weight = self._model.get_parameter(f"{module}.base_layer.weight")
            difference = self._initial[other] @ self._initial[name] - start[other] @ start[name]
            weight.data += scale * difference.to(weight)
        self._initial = start
        return own
