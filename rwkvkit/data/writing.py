"""The second half of a build: the spooled documents, written in their final order."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from rwkvkit.data.binidx import BinidxWriter
from rwkvkit.data.encoding import Index, mask_spool_path, spool_path
from rwkvkit.data.order import passes
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.spool import SpoolReader


def count_tokens(index: Index, repeats: Sequence[int], epochs: int) -> int:
    """Return the tokens that the whole corpus will have, repetitions counted."""
    sizes, sources = index.places.sizes, index.ids.sources
    one_pass = sum(
        repeat * int(sizes[sources == source].sum(dtype="int64"))
        for source, repeat in enumerate(repeats)
    )
    return epochs * one_pass


def write_corpus(
    index: Index,
    folder: Path,
    name: str,
    *,
    workers: int,
    repeats: Sequence[int],
    epochs: int,
    seed: int | None,
    report: Report,
    dtype: DTypeLike = np.uint16,
    masked: bool = False,
) -> BinidxWriter:
    """Write ``folder/name.bin`` and ``.idx``; a block is gathered while the last one is written.

    Args:
        index: the documents and where they are spooled.
        folder: holds the spool files.
        name: of the output.
        workers: how many spool files there may be.
        repeats: how often the documents of each source stand in a pass.
        epochs: number of passes.
        seed: of the shuffle; None keeps the natural order.
        report: called with every block.
        dtype: of the tokens.
        masked: whether there are masks to write too.

    Returns:
        The writer, closed, with its counts and hashes.

    Raises:
        OSError: the files cannot be written.
    """
    spools = [spool_path(folder, number) for number in range(workers)]
    spool = SpoolReader(spools, index.places, dtype)
    mask_spools = [mask_spool_path(folder, number) for number in range(workers)]
    masks = SpoolReader(mask_spools, index.places, np.uint8) if masked else None
    token_bytes = np.dtype(dtype).itemsize
    total = token_bytes * count_tokens(index, repeats, epochs)
    documents = tokens = 0
    with (
        BinidxWriter(folder / name, dtype, masked=masked) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        last: Future[None] | None = None
        for order in passes(index.ids, repeats, epochs=epochs, seed=seed):
            mask_blocks = masks.blocks(order) if masks else repeat((None, None))
            for (block, sizes), (mask, _) in zip(spool.blocks(order), mask_blocks, strict=False):
                if last:
                    last.result()
                last = thread.submit(writer.add_many, block, sizes, mask)
                documents += len(sizes)
                tokens += len(block)
                report(Progress("write", token_bytes * tokens, total, documents, tokens, 0))
        if last:
            last.result()
    return writer
