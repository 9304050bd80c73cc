"""The second half of a build: the spooled documents, written in their final order."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rwkvkit.data.binidx import BinidxWriter
from rwkvkit.data.encoding import Index, spool_path
from rwkvkit.data.order import passes
from rwkvkit.data.progress import Progress, Report
from rwkvkit.data.spool import SpoolReader

_TOKEN_BYTES = 2


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

    Returns:
        The writer, closed, with its counts and hashes.

    Raises:
        OSError: the files cannot be written.
    """
    spool = SpoolReader([spool_path(folder, number) for number in range(workers)], index.places)
    total = _TOKEN_BYTES * count_tokens(index, repeats, epochs)
    documents = tokens = 0
    with BinidxWriter(folder / name) as writer, ThreadPoolExecutor(1) as thread:
        last: Future[None] | None = None
        for order in passes(index.ids, repeats, epochs=epochs, seed=seed):
            for block, sizes in spool.blocks(order):
                if last:
                    last.result()
                last = thread.submit(writer.add_many, block, sizes)
                documents += len(sizes)
                tokens += len(block)
                report(Progress("write", _TOKEN_BYTES * tokens, total, documents, tokens, 0))
        if last:
            last.result()
    return writer
