"""Reads the samples of the next step while the present one computes."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

from rwkvkit.train.batch import Batch, Sampler


class Prefetch:
    """A sampler that has the samples of the next step ready, read in a thread.

    Args:
        samples: the data.
        stride: how many samples later the next step starts, the global batch.
        end: the last sample of the run; nothing beyond it is read.

    Attributes:
        waited_s: seconds that the latest ``read`` took.
    """

    def __init__(self, samples: Sampler, *, stride: int, end: int) -> None:
        self.waited_s = 0.0
        self._samples = samples
        self._stride, self._end = stride, end
        self._pool = ThreadPoolExecutor(1, "samples")
        self._next: tuple[tuple[int, int], Future[Batch]] | None = None

    def read(self, start: int, count: int) -> Batch:
        """Return samples ``start …``; see ``Sampler.read``."""
        began = time.perf_counter()
        if self._next and self._next[0] == (start, count):
            batch = self._next[1].result()
        else:
            batch = self._samples.read(start, count)
        self._next = None
        after = start + self._stride
        if after + count - 1 <= self._end:
            self._next = (after, count), self._pool.submit(self._samples.read, after, count)
        self.waited_s = time.perf_counter() - began
        return batch

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
