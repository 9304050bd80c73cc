"""The magic prime: what makes the sampler visit every slot of the corpus once."""

import math

import numpy as np

from rwkvkit.errors import DataError

_MIN_SLOTS = 3  # the smallest number of slots with such a prime, 2
_MOST_DIVIDED = 10**10  # which has divisors up to 10**5


def magic_prime(n_tokens: int, ctx_len: int) -> int:
    """Return the largest prime p with ``p % 3 == 2`` and ``p < n_tokens // ctx_len``.

    With ``p % 3 == 2`` the map x -> x**3 is a permutation modulo p, so that the sampler's
    ``(f * x**3) % p`` visits each of p slots of ``ctx_len`` tokens once an epoch. This is the
    number that RWKV-LM's ``make_data.py`` prints.

    Args:
        n_tokens: tokens in the corpus, the 0 at the end of each document included.
        ctx_len: tokens in a training sample.

    Raises:
        DataError: the corpus is too small for this ctx_len; the hint says what would do.
    """
    if ctx_len < 1:
        raise DataError(f"ctx_len is at least 1, not {ctx_len}")
    slots = max(0, n_tokens) // ctx_len
    if slots < _MIN_SLOTS:
        largest = max(0, n_tokens) // _MIN_SLOTS
        raise DataError(
            f"the corpus is too small: {n_tokens:,} tokens at ctx_len {ctx_len}",
            hint=f"it needs {_MIN_SLOTS * ctx_len:,} tokens for this ctx_len"
            + (f", or ctx_len {largest} at most" if largest else ""),
        )
    return _largest_prime(slots)


def coverage_warning(n_tokens: int, ctx_len: int) -> str | None:
    """Say so where training would leave out a good part of a small corpus, else return None.

    RWKV-LM's trainer refuses a prime unless ``0.9 < p / slots <= 1``. Only corpora of fewer than
    228 slots ever miss that.
    """
    slots = n_tokens // ctx_len
    prime = magic_prime(n_tokens, ctx_len)
    if _is_enough(prime, slots):
        return None
    wanted = next(n for n in range(slots + 1, 2 * slots + 228) if _is_enough(_largest_prime(n), n))
    return (
        f"training at ctx_len {ctx_len} reaches {prime} of {slots} slots of this small corpus, and "
        f"RWKV-LM's trainer refuses to start; {wanted * ctx_len:,} tokens would do"
    )


def _is_enough(prime: int, slots: int) -> bool:
    return 10 * prime > 9 * slots


def _largest_prime(slots: int) -> int:
    candidate = slots - 1 - (slots - 1 - 2) % 3
    while not _is_prime(candidate):
        candidate -= 3
    return candidate


def _is_prime(n: int) -> bool:
    """Return whether ``n``, at least 2, is a prime.

    As long as that takes a fraction of a millisecond, by division: loading sympy takes as long as
    preparing 50 MB of text.
    """
    if n > _MOST_DIVIDED:
        from sympy import isprime

        return bool(isprime(n))
    return bool((n % np.arange(2, math.isqrt(n) + 1)).all())
