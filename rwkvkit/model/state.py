"""What a model remembers of the tokens it has read.

L layers, B batch, C n_embd, H heads, N head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """The memory of a model; of one layer where the leading L is missing.

    Attributes:
        att_shift: [L, B, C], the last input of the time mixing, in the model's dtype.
        wkv: [L, B, H, N, N], the WKV state in float32; [key, value], in x070 [value, key].
        ffn_shift: [L, B, C], the last input of the channel mixing.
    """

    att_shift: Tensor
    wkv: Tensor
    ffn_shift: Tensor

    def layers(self) -> list["State"]:
        """The memory of each layer."""
        return [State(*parts) for parts in zip(*(x.unbind(0) for x in self), strict=True)]

    @classmethod
    def stack(cls, layers: Sequence["State"]) -> "State":
        """Join the memories of all layers; the inverse of :meth:`layers`."""
        return cls(*(torch.stack(parts) for parts in zip(*layers, strict=True)))
