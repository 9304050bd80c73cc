"""RWKV-5: a decay a channel, constant in time.

B batch, T tokens, C n_embd, H heads, N head size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.layers import TimeMixing, linear, mixing_vector
from rwkvkit.ops import wkv5
from rwkvkit.ops.elementwise import shift, wide
from rwkvkit.ops.inputs import Impl

HEAD_SIZE_DIVISOR = 8


class Attention(TimeMixing):
    """Time mixing."""

    def __init__(self, config: ModelConfig, layer: int, impl: Impl) -> None:
        super().__init__(config, impl)
        width = config.n_embd
        self.time_mix_k = mixing_vector(width)
        self.time_mix_v = mixing_vector(width)
        self.time_mix_r = mixing_vector(width)
        self.time_mix_g = mixing_vector(width)
        self.time_decay = nn.Parameter(torch.empty(self.heads))
        self.time_faaaa = nn.Parameter(torch.empty(self.heads))
        self.receptance = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.output = linear(width, width)
        self.gate = linear(width, width)
        self.ln_x = nn.GroupNorm(config.n_head, width)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        resets: Tensor | None,
        last: Tensor | None,
        wkv: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mix over time: x [B, T, C] -> output [B, T, C], ``v_first`` as it came, final state."""
        previous = shift(x, last, resets)
        r = self.receptance(torch.lerp(previous, x, self.time_mix_r)).unflatten(-1, self.heads)
        k = self.key(torch.lerp(previous, x, self.time_mix_k)).unflatten(-1, self.heads)
        v = self.value(torch.lerp(previous, x, self.time_mix_v)).unflatten(-1, self.heads)
        g = F.silu(self.gate(torch.lerp(previous, x, self.time_mix_g)))
        log_w = -wide(self.time_decay).exp()
        y, wkv = wkv5(
            r, k, v, log_w, self.time_faaaa, wkv, resets, origin=self.origin(), impl=self.impl
        )
        y = self.ln_x(y.flatten(0, 1).flatten(1) / HEAD_SIZE_DIVISOR).view_as(x)
        return self.output(y * g), v_first, wkv


class FeedForward(nn.Module):
    """Channel mixing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.time_mix_k = mixing_vector(config.n_embd)
        self.time_mix_r = mixing_vector(config.n_embd)
        self.key = linear(config.n_embd, config.dim_ffn)
        self.receptance = linear(config.n_embd, config.n_embd)
        self.value = linear(config.dim_ffn, config.n_embd)

    def forward(self, x: Tensor, resets: Tensor | None, last: Tensor | None) -> Tensor:
        """Mix over channels: x [B, T, C] -> [B, T, C]."""
        previous = shift(x, last, resets)
        k = F.relu(self.key(torch.lerp(previous, x, self.time_mix_k))).square()
        r = self.receptance(torch.lerp(previous, x, self.time_mix_r))
        return torch.sigmoid(r) * self.value(k)
