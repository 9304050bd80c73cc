"""RWKV-6: mixing and decay depend on the token.

B batch, T tokens, C n_embd, H heads, N head size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.layers import TimeMixing, linear, mixing_vector
from rwkvkit.ops import wkv6
from rwkvkit.ops.elementwise import shift, wide
from rwkvkit.ops.inputs import Impl

GROUP_NORM_EPS = 64e-5


class Attention(TimeMixing):
    """Time mixing."""

    def __init__(self, config: ModelConfig, layer: int, impl: Impl) -> None:
        super().__init__(config, impl)
        width = config.n_embd
        self.time_maa_x = mixing_vector(width)
        self.time_maa_w = mixing_vector(width)
        self.time_maa_k = mixing_vector(width)
        self.time_maa_v = mixing_vector(width)
        self.time_maa_r = mixing_vector(width)
        self.time_maa_g = mixing_vector(width)
        self.time_maa_w1 = nn.Parameter(torch.empty(width, 5 * config.d_mix_lora))
        self.time_maa_w2 = nn.Parameter(torch.empty(5, config.d_mix_lora, width))
        self.time_decay = mixing_vector(width)
        self.time_decay_w1 = nn.Parameter(torch.empty(width, config.d_decay_lora))
        self.time_decay_w2 = nn.Parameter(torch.empty(config.d_decay_lora, width))
        self.time_faaaa = nn.Parameter(torch.empty(self.heads))
        self.receptance = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.output = linear(width, width)
        self.gate = linear(width, width)
        self.ln_x = nn.GroupNorm(config.n_head, width, eps=GROUP_NORM_EPS)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        resets: Tensor | None,
        last: Tensor | None,
        wkv: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mix over time: x [B, T, C] -> output [B, T, C], ``v_first`` as it came, final state."""
        xx = shift(x, last, resets) - x
        q = torch.tanh(torch.addcmul(x, xx, self.time_maa_x) @ self.time_maa_w1)
        q = q.flatten(0, 1).unflatten(-1, (5, -1)).transpose(0, 1)
        deltas = torch.bmm(q, self.time_maa_w2).unflatten(1, x.shape[:2]).unbind(0)
        bases = (
            self.time_maa_w,
            self.time_maa_k,
            self.time_maa_v,
            self.time_maa_r,
            self.time_maa_g,
        )
        x_w, x_k, x_v, x_r, x_g = (
            torch.addcmul(x, xx, base + delta) for base, delta in zip(bases, deltas, strict=True)
        )

        r = self.receptance(x_r).unflatten(-1, self.heads)
        k = self.key(x_k).unflatten(-1, self.heads)
        v = self.value(x_v).unflatten(-1, self.heads)
        g = F.silu(self.gate(x_g))
        delta_w = torch.tanh(x_w @ self.time_decay_w1) @ self.time_decay_w2
        log_w = -(wide(self.time_decay) + wide(delta_w)).exp().unflatten(-1, self.heads)
        y, wkv = wkv6(
            r, k, v, log_w, self.time_faaaa, wkv, resets, origin=self.origin(), impl=self.impl
        )
        y = self.ln_x(y.flatten(0, 1).flatten(1)).view_as(x)
        return self.output(y * g), v_first, wkv


class FeedForward(nn.Module):
    """Channel mixing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.time_maa_k = mixing_vector(config.n_embd)
        self.time_maa_r = mixing_vector(config.n_embd)
        self.key = linear(config.n_embd, config.dim_ffn)
        self.receptance = linear(config.n_embd, config.n_embd)
        self.value = linear(config.dim_ffn, config.n_embd)

    def forward(self, x: Tensor, resets: Tensor | None, last: Tensor | None) -> Tensor:
        """Mix over channels: x [B, T, C] -> [B, T, C]."""
        xx = shift(x, last, resets) - x
        k = F.relu(self.key(torch.addcmul(x, xx, self.time_maa_k))).square()
        r = self.receptance(torch.addcmul(x, xx, self.time_maa_r))
        return torch.sigmoid(r) * self.value(k)
