"""Checks the token ids of a dataset against a model's vocabulary."""

import numpy as np
from numpy.typing import NDArray

from rwkvkit.data.binidx import Binidx
from rwkvkit.errors import DataError

_BLOCK = 1 << 22  # tokens read at a time
_MOST_BLOCKS = 512  # 2.1e9 tokens; of longer data as many, spread over the whole


def check_tokens(data: Binidx, vocab_size: int) -> None:
    """Check that a model knows the token ids; samples are checked again when they are read.

    Data whose type holds no other id, such as uint16 for the World vocabulary, is not read at all.

    Args:
        data: the dataset.
        vocab_size: of the model.

    Raises:
        DataError: it does not know one.
    """
    held = np.iinfo(data.dtype)
    if held.min == 0 and held.max < vocab_size:
        return
    blocks = -(-data.n_tokens // _BLOCK)
    for block in np.unique(np.linspace(0, blocks - 1, min(blocks, _MOST_BLOCKS)).astype(int)):
        start = int(block) * _BLOCK
        check_vocabulary(data.tokens(start, min(_BLOCK, data.n_tokens - start)), vocab_size, data)


def check_vocabulary(tokens: NDArray[np.integer], vocab_size: int, data: Binidx) -> None:
    """Check token ids, of any shape, that were read from a dataset.

    Raises:
        DataError: an id is not in 0..``vocab_size`` - 1.
    """
    least, largest = tokens.min(), tokens.max()
    if least < 0 or largest >= vocab_size:
        odd = least if least < 0 else largest
        raise DataError(
            f"token id {odd} is outside the model's vocabulary of {vocab_size}",
            where=f"{data.prefix}.bin",
            hint="raise the model's vocab_size, or prepare the data with its tokenizer",
        )
