"""RWKV-7: the state is edited by a delta rule with an in-context learning rate.

B batch, T tokens, C n_embd, H heads, N head size.
"""

import torch
from torch import Tensor, nn

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.layers import TimeMixing, linear, mixing_vector
from rwkvkit.ops import elementwise, wkv7
from rwkvkit.ops import fused as fused_ops
from rwkvkit.ops.inputs import Impl

GROUP_NORM_EPS = 64e-5


def fused_obstacle(config: ModelConfig) -> str | None:
    """Say what keeps a model's elementwise work from the kernels of ``ops.fused``, or None."""
    if config.arch != "x070":
        return f"the kernels are for x070, not {config.arch}"
    if config.head_size not in (64, 128):
        return f"the kernels are for head sizes 64 and 128, not {config.head_size}"
    if config.dim_ffn % 8:
        return f"the kernels need a dim_ffn that 8 divides, not {config.dim_ffn}"
    return None


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
        self.ln_x = GatedNorm(width)

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
        ops = fused_ops if self.fused else elementwise
        mixes = (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        x_r, x_w, x_k, x_v, x_a, x_g = ops.shift_mix(x, last, resets, mixes)
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w = torch.tanh(x_w @ self.w1) @ self.w2
        rate = (x_a @ self.a1) @ self.a2
        g = torch.sigmoid(x_g @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = ops.residual_value(v, v_first, (x_v @ self.v1) @ self.v2, self.v0)

        weights = {"w0": self.w0, "a0": self.a0, "k_k": self.k_k, "k_a": self.k_a}
        log_w, k, a, b = ops.prepare_keys(k, w, rate, **weights, heads=self.heads)
        r, v = r.unflatten(-1, self.heads), v.unflatten(-1, self.heads)
        y, wkv = wkv7(r, log_w, k, v, a, b, wkv, resets, origin=self.origin(), impl=self.impl)
        return self.output(self.ln_x(y, r, k, v, g, self.r_k, fused=self.fused)), v_first, wkv


class GatedNorm(nn.Module):
    """Group norm of what WKV returns, the bonus of the token itself, and the gate.

    A module of its own: engines that keep a part of each weight gather it while this runs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(
        self, y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, r_k: Tensor, *, fused: bool
    ) -> Tensor:
        """See ``norm_gate`` of ``rwkvkit.ops.elementwise``; ``fused`` takes the kernels' form."""
        ops = fused_ops if fused else elementwise
        weights = {"weight": self.weight, "bias": self.bias, "r_k": r_k}
        return ops.norm_gate(y, r, k, v, g, **weights, eps=GROUP_NORM_EPS)


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
        ops = fused_ops if self.fused else elementwise
        (x_k,) = ops.shift_mix(x, last, resets, (self.x_k,))
        return self.value(ops.relu_squared(self.key(x_k)))
