"""The loss of one forward and backward pass, over long samples a segment at a time.

G samples, T tokens, S segments.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwkvkit.model.state import State
from rwkvkit.train.batch import Batch


def losses(model: Any, batch: Batch, truncate: int = 0) -> Iterator[Tensor]:
    """Yield losses that add up to that of a batch; each is to go backward before the next is taken.

    A sample of one segment gives one loss. Where there are more, the state is carried from each
    segment to the next, and every ``truncate`` segments give a loss, through which gradients flow;
    the state goes on without them. Of the segments of a loss only the states between them are
    kept, and the rest is computed again in the backward pass, so memory does not grow with S.

    Args:
        model: an ``RWKV``, or an engine around one.
        batch: samples on the model's device.
        truncate: segments through which gradients flow; 0: all.

    Yields:
        Mean cross entropy of some segments, weighted by their share of the targets that count.
    """
    if batch.segments == 1:
        yield model(batch.x, None, batch.resets, batch.y, batch.mask)
        return
    reach = min(truncate or batch.segments, batch.segments)
    state: State = model.zero_state(len(batch.x))
    counted = None if batch.mask is None else batch.mask.sum().clamp(min=1)
    segments = batch.cut()
    for first in range(0, batch.segments, reach):
        loss = torch.zeros((), device=batch.x.device)
        for segment in segments[first : first + reach]:
            given = (segment.x, state, segment.resets, segment.y, segment.mask)
            if reach > 1:
                part, state = checkpoint(model, *given, use_reentrant=False)
            else:
                part, state = model(*given)
            if segment.mask is None or counted is None:
                loss = loss + part / batch.segments
            else:
                loss = loss + part * (segment.mask.sum().to(part.dtype) / counted)
        yield loss
        state = State(*(memory.detach() for memory in state))


def loss_count(batch: Batch, truncate: int = 0) -> int:
    """Return how many losses ``losses`` yields."""
    return -(-batch.segments // (truncate or batch.segments))
