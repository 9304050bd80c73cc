"""What a block's passes hold and move, found by running them on tensors without data.

The model's own code runs under torch's fake tensors, so nothing here has to be kept in step with
it. B batch, T tokens, C n_embd.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.rwkv import Block
from rwkvkit.ops.inputs import Impl

_MANY = 1 << 14  # samples: they cost nothing, as no data is there
# An operator registered in Python costs its host some 50 us on top of the launch (13 to 48 forward,
# 23 to 113 backward, on a CPU with the launch left out) where one of torch's starts in 5.
_OWN_LAUNCHES = 12
_NO_TRAFFIC = frozenset(("mm", "addmm", "bmm", "baddbmm", "empty", "empty_like", "detach"))


@dataclass(frozen=True)
class Footprint:
    """Bytes of a block for some number of samples and tokens.

    Attributes:
        saved: held between the forward and the backward pass, the output included.
        kernel: of these, what WKV kernels returned.
        workspace: the backward pass holds beyond ``saved``, gradients of weights left out.
        traffic: read and written by everything but matrix products and WKV kernels, eagerly.
        launches: operations, each at least a kernel on a GPU; the host spends as long as on so many
            of torch's own.
    """

    saved: float
    kernel: float
    workspace: float
    traffic: float
    launches: float


def block_footprint(
    model: ModelConfig,
    dtype: torch.dtype,
    impl: Impl,
    batch: int,
    tokens: int,
    *,
    fused: bool = False,
    trained_names: frozenset[str] | None = None,
) -> Footprint:
    """Return the footprint of one block (not the first) for a batch of [B, T].

    Every quantity is ``a + b·B + c·T + d·B·T`` where ``a``, the gradients of the weights, is left
    out. Four runs decide it, of few tokens and of so many samples that ``a`` hides no peak.

    Args:
        model: the model's shape.
        dtype: of weights and activations.
        impl: the WKV operator.
        batch: B.
        tokens: T.
        fused: whether the elementwise work is that of hand-written kernels.
        trained_names: names of the block's weights that get a gradient; None: all.
    """
    short, long = (8, 16) if impl == "naive" else (64, 128)
    few, many = _MANY, 2 * _MANY
    sizes = [(b, t) for b in (few, many) for t in (short, long)]
    measured = [_measure(model, dtype, impl, fused, trained_names, b, t) for b, t in sizes]

    def at(name: str) -> float:
        few_short, few_long, many_short, many_long = (getattr(m, name) for m in measured)
        d = (many_long - many_short - few_long + few_short) / (few * (long - short))
        b = (many_short - few_short) / few - d * short
        c = (few_long - few_short) / (long - short) - d * few
        return b * batch + c * tokens + d * batch * tokens

    a_token = (measured[1].launches - measured[0].launches) / (long - short)
    launches = measured[0].launches + a_token * (tokens - short)
    return Footprint(at("saved"), at("kernel"), at("workspace"), at("traffic"), launches)


@cache
def _measure(
    model: ModelConfig,
    dtype: torch.dtype,
    impl: Impl,
    fused: bool,
    trained_names: frozenset[str] | None,
    batch: int,
    tokens: int,
) -> Footprint:
    with torch.device("meta"):
        block = Block(model, 1, impl, False).to(dtype)
    if fused:
        block.fuse()
    with FakeTensorMode():
        device = "meta" if impl == "cuda" else "cpu"  # on a CPU that operator refuses to run
        weights = {n: _empty(p.shape, dtype, device) for n, p in block.named_parameters()}
        for name, weight in weights.items():
            weight.requires_grad_(trained_names is None or name in trained_names)
        x, v_first = (_empty((batch, tokens, model.n_embd), dtype, device) for _ in range(2))
        given = (x, v_first if model.arch == "x070" else None, None, None)
        gradient = torch.empty_like(x)
        with Ledger() as ledger:
            y, _, _ = torch.func.functional_call(block, weights, given)
            saved = ledger.held
            y.backward(gradient)
            workspace = ledger.peak - saved
            return Footprint(saved, ledger.kernel, workspace, ledger.traffic, ledger.launches)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).requires_grad_()


class Ledger(TorchDispatchMode):
    """Adds up what operations hold and move while it is entered; tensors from before not.

    Attributes:
        held: bytes alive now.
        peak: the most bytes alive at once.
        kernel: bytes that WKV kernels returned in forward passes.
        traffic: see :class:`Footprint`.
        launches: operations that computed something, each for as many as its host takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = self.kernel = self.traffic = self.launches = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and write it down."""
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in given}
        is_new = [self._hold(tensor, known) for tensor in made]
        namespace, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        own = _OWN_LAUNCHES if namespace == "rwkvkit" else 1
        self.launches += own * (any(is_new) or name.endswith("_"))
        if namespace == "rwkvkit" and name.startswith("wkv"):
            self.kernel += 0 if "backward" in name else sum(map(_bytes, made))
        elif (any(is_new) or name.endswith("_")) and name not in _NO_TRAFFIC:
            self.traffic += sum(map(_bytes, made)) + sum(map(_bytes, given))
        return result

    def _hold(self, tensor: Tensor, known: set[int]) -> bool:
        """Count a tensor's memory, once; say whether it is new, and not that of an input."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in known:
            return False
        self._sizes[key] = storage.nbytes()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget(key))
        return True

    def _forget(self, key: int) -> Callable[[], None]:
        def forget() -> None:
            self.held -= self._sizes.pop(key)

        return forget


def _bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements: where a tensor was expanded, an element counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()
