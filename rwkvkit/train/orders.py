"""Put a dataset into the order that a recipe asks for, and say why."""

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.binidx import BLOCK, Binidx, mask_path
from rwkvkit.data.prime import magic_prime
from rwkvkit.errors import DataError
from rwkvkit.train.batch import Sampler
from rwkvkit.train.documents import PackedSamples, PaddedSamples
from rwkvkit.train.packing import Rows, cut, pack
from rwkvkit.train.sampler import SampleReader
from rwkvkit.train.sampling import Order, SamplingConfig


def choose_order(config: SamplingConfig, data: Binidx) -> tuple[Order, str]:
    """Resolve ``auto``; return the order and the reason."""
    if config.order != "auto":
        return config.order, "as asked"
    if data.has_mask:
        return "packed", "the dataset has a loss mask"
    return "cubic", "the dataset has no loss mask"


def make_samples(
    config: SamplingConfig,
    data: Binidx,
    *,
    ctx_len: int,
    vocab_size: int,
    global_batch: int,
    seed: int,
) -> Sampler:
    """Put a dataset into the order that the recipe asks for.

    Args:
        config: the recipe's settings.
        data: the dataset.
        ctx_len: tokens a sample, or a segment of one.
        vocab_size: ids must be below this.
        global_batch: samples an optimizer step.
        seed: of orders that are drawn.

    Raises:
        DataError: the dataset is too small, or its mask counts no token.
    """
    order, reason = choose_order(config, data)
    line = f"order {order}: {reason}"
    if order == "cubic":
        prime = magic_prime(data.n_tokens, ctx_len)
        _check_mask(data)
        return SampleReader(data, prime, ctx_len, vocab_size, line)
    if data.n_tokens == 0 or data.sizes.max() < 2:
        raise DataError(
            "no document has two tokens: there is nothing to predict",
            where=data.prefix,
            hint="train on another dataset",
        )
    _check_mask(data)
    segments = _segments(config, data, ctx_len) if order == "infctx" else 1
    pieces = cut(data.sizes, ctx_len * segments)
    lines = [line, *_about_long(pieces, data, order)]
    if order == "padded":
        return PaddedSamples(
            data, pieces, vocab_size, group=global_batch, seed=seed, lines=tuple(lines)
        )
    rows = pack(pieces, seed)
    if order == "infctx":
        lines.append(_about_segments(config, segments, ctx_len))
    lines.append(
        f"{len(data):,} documents in {len(rows):,} samples,"
        f" {rows.padding:.1%} of the positions are padding"
    )
    return PackedSamples(data, rows, vocab_size, seed, segments, tuple(lines))


def validation_samples(
    order: Order, config: SamplingConfig, data: Binidx, *, ctx_len: int, vocab_size: int, seed: int
) -> PackedSamples:
    """Cut held-out data into samples like those of the training, each target once.

    Where documents do not matter (cubic) samples follow one another through the tokens; otherwise
    documents are packed.

    Raises:
        DataError: there is nothing to predict, or the mask counts no token.
    """
    documents: NDArray[np.integer] = np.array([data.n_tokens]) if order == "cubic" else data.sizes
    segments = _segments(config, data, ctx_len) if order == "infctx" else 1
    if data.n_tokens == 0 or documents.max() < 2:
        raise DataError(
            "there is nothing to predict in the validation data",
            where=data.prefix,
            hint="give it more documents",
        )
    _check_mask(data)
    pieces = cut(documents, ctx_len * segments)
    rows = pieces if order == "cubic" else pack(pieces, seed)
    return PackedSamples(data, rows, vocab_size, seed, segments)


def _check_mask(data: Binidx) -> None:
    """Refuse data of which no token counts: a loss of 0 over nothing would look like success."""
    blocks = range(0, data.n_tokens, BLOCK)
    if any(data.mask(at, min(BLOCK, data.n_tokens - at)).any() for at in blocks):
        return
    raise DataError(
        "the mask counts no token in the loss",
        where=str(mask_path(data.prefix)),
        hint="build it from documents that count: chats with an answer, or sources whose loss is "
        "not none",
    )


def _segments(config: SamplingConfig, data: Binidx, ctx_len: int) -> int:
    return config.segments or max(1, -(-(int(data.sizes.max()) - 1) // ctx_len))


def _about_long(pieces: Rows, data: Binidx, order: Order) -> list[str]:
    long = int((data.sizes > pieces.size + 1).sum())
    if not long:
        return []
    cut_into = f"{long:,} documents longer than {pieces.size:,} tokens are cut into pieces"
    if order == "infctx":
        return [f"{cut_into}; a larger train.sampling.segments keeps them whole"]
    return [f"{cut_into} that do not see each other; order infctx would carry the state"]


def _about_segments(config: SamplingConfig, segments: int, ctx_len: int) -> str:
    given = "the recipe says so" if config.segments else "the longest document needs them"
    reach = f"reach back over {config.truncate} of them"
    if not config.truncate or config.truncate >= segments:
        reach = "reach back to its start"
    return f"{segments} segments of {ctx_len} tokens a sample: {given}; gradients {reach}"
