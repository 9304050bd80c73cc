"""The model around the blocks: embedding, blocks, head; GPT mode and RNN mode.

L layers, B batch, T tokens, C n_embd, V vocab_size, H heads, N head size.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from rwkvkit.errors import UsageError
from rwkvkit.model import x052, x060, x070
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.layers import Head, linear
from rwkvkit.model.loss import lm_loss
from rwkvkit.model.state import State
from rwkvkit.ops.elementwise import wide
from rwkvkit.ops.inputs import Impl

_ARCHITECTURES: dict[str, ModuleType] = {"x052": x052, "x060": x060, "x070": x070}

GradCp = bool | Literal["selective"]


class RWKV(nn.Module):
    """An RWKV language model.

    Made by :func:`rwkvkit.model.checkpoint.build_model` or ``load_model``; the constructor alone
    leaves the parameters without values.

    Attributes:
        config: its shape.
    """

    def __init__(
        self, config: ModelConfig, *, grad_cp: GradCp = False, impl: Impl = "auto"
    ) -> None:
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config, layer, impl, grad_cp) for layer in range(config.n_layer)
        )
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = Head(config, impl)
        if config.head_qk:
            self.head_q = linear(config.n_embd, config.head_qk)
            self.head_k = linear(config.n_embd, config.head_qk)
        self._runs: tuple[Callable[..., Any], ...] = ()

    def compile_blocks(self, **settings: Any) -> None:
        """Compile the blocks with torch.compile, for passes that need gradients.

        Without gradients (evaluation, sampling) lengths vary, so the blocks run as they are. The
        first training step compiles: one graph for the first block and one for all others.

        Args:
            settings: for ``torch.compile``; ``dynamic=True`` for batches of many widths, which then
                share a few graphs.
        """
        if "backend" not in settings:
            settings = {"options": _inductor_options(), **settings}
        # A tuple, not a module list: parameters keep their names.
        self._runs = tuple(
            torch.compile(block, **{"dynamic": False, **settings}) for block in self.blocks
        )

    def fuse_elementwise(self) -> None:
        """Let x070's elementwise work run as the hand-written kernels of ``rwkvkit.ops.fused``.

        On a CPU, and in fp32, it is still the plain form.

        Raises:
            UsageError: there are no kernels for a model of this shape.
        """
        if obstacle := x070.fused_obstacle(self.config):
            raise UsageError(
                obstacle, where="model.fuse_elementwise()", hint="leave it out: PyTorch does it"
            )
        for block in self.blocks:
            cast("Block", block).fuse()

    def forward(
        self,
        idx: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Predict the token after each token, or say how well it is predicted.

        Without a state the tokens are the start of a document (GPT mode). With one they continue
        what the state remembers, by any number of tokens; one at a time is the RNN mode.

        Args:
            idx: token ids, int64 [B, T].
            state: what came before, from :meth:`zero_state` or an earlier call.
            resets: bool [B, T], True where a new document starts: nothing of what came before
                reaches that token or a later one.
            targets: the token after each token, int64 [B, T]: return the loss, not the logits,
                which then are never held as a whole (but by HeadQK).
            mask: weight of each target in the loss [B, T], see :func:`~rwkvkit.lm_loss`.

        Returns:
            Logits [B, T, V] in the weights' dtype, or the loss, a scalar in float32; with a state,
            also the state after the last token.

        Raises:
            UsageError: ``idx`` is not [B, T] with at least one token, shapes do not fit together,
                or a state is given to a model with HeadQK, which needs the whole context.
        """
        if idx.dim() != 2 or 0 in idx.shape:
            raise UsageError(
                f"idx has shape {tuple(idx.shape)}, not [B, T]",
                where="model(idx)",
                hint="a single text is idx[None]; there must be at least one token",
            )
        if state is not None and self.config.head_qk:
            raise UsageError(
                "a model with HeadQK cannot continue from a state",
                where="model(idx, state=...)",
                hint="HeadQK looks at every earlier token: give the whole text without a state",
            )
        before = [None] * self.config.n_layer if state is None else state.layers()
        after: list[State | None] = []
        x = self.drop(self.emb(idx))
        v_first: Tensor | None = None
        blocks = self._runs if self._runs and torch.is_grad_enabled() else tuple(self.blocks)
        for block, memory in zip(blocks, before, strict=True):
            x, v_first, memory = block(x, v_first, resets, memory)
            after.append(memory)
        x = self.ln_out(x)
        if self.config.head_qk:
            result = self._with_copies(self.head(x), x, idx, resets)
            result = result if targets is None else lm_loss(result, targets, mask)
        else:
            result = self.head(x, targets, mask)
        return result if state is None else (result, State.stack(cast("list[State]", after)))

    def loss(
        self,
        idx: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        state: State | None = None,
        resets: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Return the loss of predicting ``targets``, with a state also the state after it.

        The same as :meth:`forward` with targets; arguments and errors are described there.
        """
        result: Tensor | tuple[Tensor, State] = self(idx, state, resets, targets, mask)
        return result

    def zero_state(self, batch_size: int) -> State:
        """Return the state at a document's start: zero, or the tuned ``time_state``.

        Args:
            batch_size: B.
        """
        config, weight = self.config, self.emb.weight
        shape = (batch_size, config.n_head, config.head_size, config.head_size)
        shift = weight.new_zeros(config.n_layer, batch_size, config.n_embd)
        wkv = wide(weight.new_zeros(config.n_layer, *shape))
        if config.time_state:
            blocks = cast("list[Block]", list(self.blocks))
            wkv = torch.stack([wide(b.att.origin()).expand(shape) for b in blocks])
        return State(shift, wkv, shift.clone())

    def _with_copies(self, logits: Tensor, x: Tensor, idx: Tensor, resets: Tensor | None) -> Tensor:
        """HeadQK: raise the logits of earlier tokens whose key fits the current query."""
        fit = self.head_q(x) @ self.head_k(x).mT / self.config.head_qk
        fit = fit.tril()
        if resets is not None:
            document = resets.cumsum(1)
            fit = fit * (document[:, :, None] == document[:, None, :])
        return logits.scatter_add(-1, idx[:, None, :].expand_as(fit), fit)


class Block(nn.Module):
    """Time mixing and channel mixing, each on normalised input and added to the stream.

    Attributes:
        grad_cp: whether the backward pass computes the activations again instead of keeping them:
            less memory, about a third more time. ``selective`` keeps what the WKV operator returns,
            where it is a kernel and not plain PyTorch, and computes the rest again.
    """

    def __init__(self, config: ModelConfig, layer: int, impl: Impl, grad_cp: GradCp) -> None:
        super().__init__()
        architecture = _ARCHITECTURES[config.arch]
        # Blocks differ in what they hold, never in a number: torch.compile then needs two graphs,
        # one for the first block and one for all others.
        self.ln0 = nn.LayerNorm(config.n_embd) if layer == 0 else None
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.att = architecture.Attention(config, layer, impl)
        self.ffn = architecture.FeedForward(config)
        self.drop = nn.Dropout(config.dropout)
        self.grad_cp = grad_cp

    def fuse(self) -> None:
        """Run the elementwise work as kernels; only x070 has them."""
        self.att.fused = self.ffn.fused = True

    def forward(
        self, x: Tensor, v_first: Tensor | None, resets: Tensor | None, memory: State | None
    ) -> tuple[Tensor, Tensor | None, State | None]:
        """Run the block on x [B, T, C]; return its output and v_first.

        Given the layer's memory of what came before, also return that after the last token.
        """
        if not (self.grad_cp and torch.is_grad_enabled()):
            return self._run(x, v_first, resets, memory)
        keep: dict[str, Any] = {"context_fn": _keep_wkv} if self.grad_cp == "selective" else {}
        result: tuple[Tensor, Tensor | None, State | None] = checkpoint(
            self._run,
            x,
            v_first,
            resets,
            memory,
            use_reentrant=False,
            **keep,
        )
        return result

    def _run(
        self, x: Tensor, v_first: Tensor | None, resets: Tensor | None, memory: State | None
    ) -> tuple[Tensor, Tensor | None, State | None]:
        last_att, wkv, last_ffn = (None, None, None) if memory is None else memory
        if self.ln0 is not None:
            x = self.ln0(x)
        normed_att = self.ln1(x)
        mixed, v_first, wkv = self.att(normed_att, v_first, resets, last_att, wkv)
        x = self.drop(x + mixed)
        normed_ffn = self.ln2(x)
        x = self.drop(x + self.ffn(normed_ffn, resets, last_ffn))
        if memory is None:  # returned, the last token would keep the whole tensor it is a part of
            return x, v_first, None
        return x, v_first, State(normed_att[:, -1], wkv, normed_ffn[:, -1])


def _inductor_options() -> dict[str, Any]:
    """Settings of torch.compile's own backend.

    On a GPU one of its reductions gives the gradient of a mixing vector as [C], where autograd
    wants [1, 1, C] and stops (pytorch issue 178080; torch 2.11 has it).
    """
    from torch._inductor import list_options  # a second, and not needed where nothing is compiled

    name = "triton.mix_order_reduction"
    return {name: False} if name in list_options() else {}


def _policy(context: Any, operator: Any, *inputs: Any, **settings: Any) -> CheckpointPolicy:
    is_wkv = operator.name().startswith("rwkvkit::wkv")
    return CheckpointPolicy.MUST_SAVE if is_wkv else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_wkv() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_policy)
