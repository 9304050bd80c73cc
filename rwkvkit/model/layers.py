"""Small parts that the architectures share.

B batch, T tokens, C n_embd, H heads, N head size, V vocab_size.
"""

import torch
from torch import Tensor, nn

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.loss import head_loss
from rwkvkit.ops.inputs import Impl


class TimeMixing(nn.Module):
    """What the time mixing of every architecture has: its heads and an initial state."""

    state_is_value_key = False

    def __init__(self, config: ModelConfig, impl: Impl) -> None:
        super().__init__()
        self.impl = impl
        self.heads = (config.n_head, config.head_size)
        if config.time_state:
            self.time_state = nn.Parameter(
                torch.empty(config.n_head, config.head_size, config.head_size)
            )

    def origin(self) -> Tensor | None:
        """The tuned state of a document's start [H, N, N], in the operator's layout, or None.

        ``time_state`` is stored as [head, value, key] in every architecture.
        """
        if not hasattr(self, "time_state"):
            return None
        return self.time_state if self.state_is_value_key else self.time_state.mT


class Head(nn.Linear):
    """From the last hidden layer to logits, or at once to the loss, which needs no logits.

    Both are the module's own forward: engines that keep a part of each weight (ZeRO-3) gather it
    for as long as that runs.
    """

    def __init__(self, config: ModelConfig, impl: Impl) -> None:
        super().__init__(config.n_embd, config.vocab_size, bias=False)
        self.impl = impl

    def forward(
        self, x: Tensor, targets: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return logits [B, T, V] of x [B, T, C], or the loss where ``targets`` [B, T] are given.

        Args:
            x: hidden values [B, T, C].
            targets: token ids [B, T].
            mask: the weight of each target [B, T]; None: all equal.
        """
        if targets is None:
            return super().forward(x)
        return head_loss(x, self.weight, targets, mask, impl=self.impl)


def mixing_vector(width: int) -> nn.Parameter:
    """A weight a channel, [1, 1, C] as checkpoints store it."""
    return nn.Parameter(torch.empty(1, 1, width))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer; none of RWKV's has a bias."""
    return nn.Linear(inputs, outputs, bias=False)
