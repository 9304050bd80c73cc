"""Put a dataset into the order that a recipe asks for."""

from rwkvkit.data.binidx import Binidx
from rwkvkit.data.prime import magic_prime
from rwkvkit.train.batch import Sampler
from rwkvkit.train.sampler import SampleReader
from rwkvkit.train.sampling import SamplingConfig


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
        DataError: the dataset is too small.
    """
    return SampleReader(data, magic_prime(data.n_tokens, ctx_len), ctx_len, vocab_size)
