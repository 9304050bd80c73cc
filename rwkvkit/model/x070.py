"""RWKV-7: the state is edited by a delta rule with an in-context learning rate.

B batch, T tokens, C n_embd, H heads, N head size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.layers import TimeMixing, linear, mixing_vector
from rwkvkit.ops import elementwise, fused, wkv7
from rwkvkit.ops.elementwise import wide
from rwkvkit.ops.inputs import Impl

GROUP_NORM_EPS = 64e-5
LOG_W_SCALE = -math.exp(-0.5)


class Attention(TimeMixing):
    """Time mixing. Layer 0 has no value residual (v0, v1, v2): it is where v_first comes from.

    Attributes:
        fused: whether the elementwise work is that of ``rwkvkit.ops.fused``.
    """

    state_is_value_key = True
    fused = False

    def __init__(self, config: ModelConfig, layer: int, impl: Impl) -> None:
        super().__init__(config, impl)
        width = config.n_embd
        self.x_r = mixing_vector(width)
        self.x_w = mixing_vector(width)
        self.x_k = mixing_vector(width)
        self.x_v = mixing_vector(width)
        self.x_a = mixing_vector(width)
        self.x_g = mixing_vector(width)
        self.w0 = mixing_vector(width)
        self.w1 = nn.Parameter(torch.empty(width, config.d_decay_lora))
        self.w2 = nn.Parameter(torch.empty(config.d_decay_lora, width))
        self.a0 = mixing_vector(width)
        self.a1 = nn.Parameter(torch.empty(width, config.d_aaa_lora))
        self.a2 = nn.Parameter(torch.empty(config.d_aaa_lora, width))
        if layer > 0:
            self.v0 = mixing_vector(width)
            self.v1 = nn.Parameter(torch.empty(width, config.d_mv_lora))
            self.v2 = nn.Parameter(torch.empty(config.d_mv_lora, width))
        self.g1 = nn.Parameter(torch.empty(width, config.d_gate_lora))
        self.g2 = nn.Parameter(torch.empty(config.d_gate_lora, width))
        self.k_k = mixing_vector(width)
        self.k_a = mixing_vector(width)
        self.r_k = nn.Parameter(torch.empty(self.heads))
        self.receptance = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.output = linear(width, width)
        self.ln_x = nn.GroupNorm(config.n_head, width, eps=GROUP_NORM_EPS)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        resets: Tensor | None,
        last: Tensor | None,
        wkv: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mix over time.

        Args:
            x: [B, T, C].
            v_first: the values of layer 0 [B, T, C]; None in layer 0.
            resets: bool [B, T] or None.
            last: the input before the first token [B, C], or None for zero.
            wkv: the state before the first token [B, H, N, N], or None for a document's start.

        Returns:
            The output [B, T, C], v_first, and the state after the last token.
        """
        ops = fused if self.fused else elementwise
        mixes = (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        x_r, x_w, x_k, x_v, x_a, x_g = ops.shift_mix(x, last, resets, mixes)
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w_raw = wide(self.w0) + wide(torch.tanh(x_w @ self.w1) @ self.w2)
        log_w = LOG_W_SCALE * torch.sigmoid(w_raw)
        rate = torch.sigmoid(self.a0 + (x_a @ self.a1) @ self.a2)
        g = torch.sigmoid(x_g @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + (x_v @ self.v1) @ self.v2))

        kk = F.normalize(wide(k * self.k_k).unflatten(-1, self.heads), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        r, log_w, k, v, rate = (x.unflatten(-1, self.heads) for x in (r, log_w, k, v, rate))
        y, wkv = wkv7(
            r, log_w, k, v, -kk, kk * rate, wkv, resets, origin=self.origin(), impl=self.impl
        )
        y = self.ln_x(y.flatten(0, 1).flatten(1)).view_as(x)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output((y + bonus.flatten(-2)) * g), v_first, wkv


class FeedForward(nn.Module):
    """Channel mixing.

    Attributes:
        fused: as in :class:`Attention`.
    """

    fused = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.x_k = mixing_vector(config.n_embd)
        self.key = linear(config.n_embd, config.dim_ffn)
        self.value = linear(config.dim_ffn, config.n_embd)

    def forward(self, x: Tensor, resets: Tensor | None, last: Tensor | None) -> Tensor:
        """Mix over channels: x [B, T, C] -> [B, T, C]."""
        ops = fused if self.fused else elementwise
        (x_k,) = ops.shift_mix(x, last, resets, (self.x_k,))
        return self.value(ops.relu_squared(self.key(x_k)))
