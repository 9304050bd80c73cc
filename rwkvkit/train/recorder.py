"""Passes that are recorded once, and then repeated without their Python code.

A recording repeats the same work on the same memory: so batches are copied into tensors that stay,
gradients and the loss add up in tensors that stay, and nothing on the way may wait for the device.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rwkvkit.errors import SetupError
from rwkvkit.model.loss import every_token
from rwkvkit.train.batch import Batch

Pass = Callable[[Batch, Tensor], None]
"""Runs forward and backward on a batch, with the weight of its loss; adds to what stays."""

_WARM_UPS = 3  # passes that run as they are: they compile kernels, and allocate what stays
_MOST = 2  # shapes of batches that are recorded, as each holds its activations


class Recorder(Protocol):
    """Records work on a device."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work as it is, where it will be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work, without doing it; return what does it.

        Raises:
            RuntimeError: it cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs, on a stream of its own. It has not run on a GPU yet.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work on the stream; see :class:`Recorder`."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture work into a graph; see :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass
class _Shape:
    """Batches of one shape: the tensors they are copied into, and their recording, if any."""

    batch: Batch
    share: Tensor
    wanted: bool
    passes: int = 0
    repeat: Callable[[], None] | None = None

    def fill(self, batch: Batch, share: float) -> None:
        self.share.fill_(share)
        for to, tensor in zip(_tensors(self.batch), _tensors(batch), strict=True):
            if to is not None and tensor is not None:
                to.copy_(tensor, non_blocking=True)


class RecordedPasses:
    """Runs passes: the first of a shape as they are, the others by repeating their recording.

    Where recording fails, all passes run as they are.

    Args:
        run: a pass.
        recorder: records.
        device: where batches go.
        report: takes a line for people.
        demanded: failing is an error.
    """

    def __init__(
        self,
        run: Pass,
        recorder: Recorder,
        device: torch.device,
        report: Callable[[str], None],
        *,
        demanded: bool = False,
    ) -> None:
        self._run = run
        self._recorder = recorder
        self._device = device
        self._report = report
        self._demanded = demanded
        self._shapes: dict[object, _Shape] = {}
        self._failed = False

    def __call__(self, batch: Batch, share: float) -> None:
        """Run the pass on a batch whose loss has the weight ``share``.

        Raises:
            SetupError: recording failed, and the recipe demands it.
        """
        shape = self._shape_of(batch)
        shape.fill(batch, share)
        if shape.wanted and shape.passes == _WARM_UPS and shape.repeat is None:
            self._record(shape)
        if shape.repeat is not None:
            shape.repeat()
            return
        shape.passes = min(shape.passes + 1, _WARM_UPS)
        self._recorder.warm_up(lambda: self._pass(shape))

    def _pass(self, shape: _Shape) -> None:
        # What will be recorded must have run just like that: kernels are loaded before.
        with every_token() if shape.wanted else nullcontext():
            self._run(shape.batch, shape.share)

    def _shape_of(self, batch: Batch) -> _Shape:
        signature = (
            batch.segments,
            *(None if x is None else (x.shape, x.dtype) for x in _tensors(batch)),
        )
        if known := self._shapes.get(signature):
            return known
        x, y, mask, resets = (
            None if tensor is None else torch.empty_like(tensor, device=self._device)
            for tensor in _tensors(batch)
        )
        assert x is not None
        assert y is not None
        stays = replace(batch, x=x, y=y, mask=mask, resets=resets)
        wanted = not self._failed and len(self._shapes) < _MOST
        shape = _Shape(stays, torch.empty((), device=self._device), wanted)
        if wanted:
            self._shapes[signature] = shape
        return shape

    def _record(self, shape: _Shape) -> None:
        try:
            shape.repeat = self._recorder.record(lambda: self._pass(shape))
        except RuntimeError as error:  # also what a driver refuses
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            if self._demanded:
                raise SetupError(
                    f"a pass cannot be recorded: {why}",
                    where="train.cuda_graphs",
                    hint="set train.cuda_graphs to false",
                ) from error
            self._failed = True
            for known in self._shapes.values():
                known.wanted = known.repeat is not None
            self._report(f"cuda graphs off: a pass cannot be recorded ({why})")


def _tensors(batch: Batch) -> tuple[Tensor | None, ...]:
    return batch.x, batch.y, batch.mask, batch.resets


def record_passes(
    device: torch.device, report: Callable[[str], None], run: Pass, *, demanded: bool
) -> RecordedPasses:
    """Return passes that are recorded as CUDA graphs; see :class:`RecordedPasses`."""
    return RecordedPasses(run, CudaRecorder(device), device, report, demanded=demanded)
