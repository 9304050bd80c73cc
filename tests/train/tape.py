"""A stand-in for a CUDA graph: operations on a tape, repeated on the memory of their recording."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)


class Tape(TorchDispatchMode):
    """Records what is computed while it is entered.

    Recording leaves tensors from before as they were; operations that wait for the device fail, as
    they do in a graph.

    Args:
        fails_at: the number of the operation that cannot be recorded.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _WAITS or len(self.steps) == self.fails_at:
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        if func._schema.is_mutable:
            for tensor in tensors((args, kwargs)):
                if tensor.untyped_storage()._cdata not in self._made:
                    self._before.append((tensor, tensor.clone()))
        result = func(*args, **kwargs)
        self._made |= {x.untyped_storage()._cdata for x in tensors(result)}
        self.steps.append((func, args, kwargs, result))
        return result

    def rewind(self) -> None:
        """Take back what the recording did to tensors from before."""
        for tensor, value in reversed(self._before):
            tensor.copy_(value)

    @torch.no_grad()
    def play(self) -> None:
        """Do it all again, into the same tensors."""
        for func, args, kwargs, result in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """Records tapes.

    Attributes:
        warm_ups: how often work ran as it is.
        tapes: what was recorded.
        played: how often something was repeated.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.warm_ups = self.played = 0
        self.tapes: list[Tape] = []

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warm_ups += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        tape = Tape(self.fails_at)
        try:
            with tape:
                work()
        finally:
            tape.rewind()
        self.tapes.append(tape)

        def play() -> None:
            self.played += 1
            tape.play()

        return play


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
