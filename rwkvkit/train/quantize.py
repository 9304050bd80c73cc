"""Store the matrices under an adapter in 8 or 4 bits, through bitsandbytes."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from rwkvkit.errors import SetupError

Kind = Literal["int8", "nf4"]


def quantize(model: nn.Module, names: Sequence[str], kind: Kind, device: torch.device) -> None:
    """Replace linear layers by quantized ones, frozen, which compute in their input's dtype.

    Args:
        model: changed in place.
        names: of the linear layers, none of which has a bias.
        kind: ``int8`` with a scale a row, or ``nf4``, 4 bits with a scale for 64 values.
        device: where the quantized weights go, and on which they are quantized.

    Raises:
        SetupError: bitsandbytes is not installed, or does not work on the device.
    """
    try:
        import bitsandbytes
    except Exception as error:  # a library it needs may be missing too
        raise SetupError(
            f"quantized matrices need the package bitsandbytes ({error})",
            where="train.tuning.quantize",
            hint="pip install 'rwkvkit[quantize]', or quantize: none",
        ) from error
    try:
        for name in names:
            parent, _, own = name.rpartition(".")
            layer = model.get_submodule(name)
            setattr(model.get_submodule(parent), own, _layer(bitsandbytes.nn, layer, kind, device))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise SetupError(
            f"bitsandbytes cannot quantize on {device}: {str(error).splitlines()[0]}",
            where="train.tuning.quantize",
            hint="quantize: none works everywhere",
        ) from error


def quantized_bytes(kind: Kind, shape: tuple[int, ...]) -> float:
    """Return the bytes of a quantized matrix [outputs, inputs], scales included."""
    outputs, inputs = shape
    if kind == "int8":
        return outputs * inputs + 4 * outputs
    scales = math.ceil(outputs * inputs / 64)  # of 8 bits, and a scale in float32 for 256 of them
    return outputs * inputs / 2 + scales + 4 * math.ceil(scales / 256)


def _layer(library: Any, linear: Any, kind: Kind, device: torch.device) -> nn.Module:
    """The quantized form of one layer; bitsandbytes quantizes as it moves to a device."""
    sizes, weight = (linear.in_features, linear.out_features), linear.weight.detach()
    if kind == "nf4":
        layer = library.Linear4bit(*sizes, bias=False, quant_type="nf4", device="meta")
        # For evaluation bitsandbytes would pack weights anew where a CPU has AVX512-BF16: it fails
        # at widths that 64 does not divide, and computes in another precision than training.
        layer.support_avx512bf16_for_cpu = False
        layer.weight = library.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        layer = library.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, device="meta")
        layer.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    moved: nn.Module = layer.to(device)
    return moved
