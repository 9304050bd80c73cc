import json

import pytest
from sympy import isprime

from rwkvkit import magic_prime
from rwkvkit.data import prime
from rwkvkit.data.prime import coverage_warning
from rwkvkit.errors import DataError


@pytest.mark.parametrize(
    ("n_tokens", "ctx_len", "expected"),
    [(1_498_226_207, 4096, 365_759), (1_498_226_207, 512, 2_926_181), (3, 1, 2), (6 * 7, 7, 5)],
)
def test_known_primes(n_tokens, ctx_len, expected):
    assert magic_prime(n_tokens, ctx_len) == expected


def test_the_primes_that_the_reference_printed(golden):
    for name, made in json.loads((golden / "meta.json").read_text())["make_data"].items():
        printed = made["stdout"][-1].split()
        flags = dict(zip(printed[::2], map(int, printed[1::2]), strict=True))
        found = magic_prime(flags["--my_exit_tokens"], flags["--ctx_len"])
        assert found == flags["--magic_prime"], name


def test_it_is_the_largest_there_is():
    for slots in range(3, 400):
        expected = max(p for p in range(2, slots) if isprime(p) and p % 3 == 2)
        assert magic_prime(slots * 5 + 4, 5) == expected


@pytest.mark.parametrize("around", [prime._MOST_DIVIDED, 2**31, 10**6, 10**13])
def test_sympy_agrees(around):
    for slots in range(around - 60, around + 60, 7):
        found = magic_prime(slots, 1)
        assert isprime(found)
        assert found % 3 == 2
        assert not any(isprime(larger) for larger in range(found + 3, slots, 3))


@pytest.mark.parametrize(
    ("n_tokens", "ctx_len", "hint"),
    [
        (100, 512, "it needs 1,536 tokens for this ctx_len, or ctx_len 33 at most"),
        (8, 4, "it needs 12 tokens for this ctx_len, or ctx_len 2 at most"),
        (2, 1, "it needs 3 tokens for this ctx_len"),
        (0, 16, "it needs 48 tokens for this ctx_len"),
    ],
)
def test_a_corpus_too_small_says_what_would_do(n_tokens, ctx_len, hint):
    with pytest.raises(DataError, match="the corpus is too small") as caught:
        magic_prime(n_tokens, ctx_len)
    assert caught.value.hint == hint


@pytest.mark.parametrize("ctx_len", [0, -5])
def test_an_impossible_ctx_len(ctx_len):
    with pytest.raises(DataError, match="ctx_len is at least 1"):
        magic_prime(1000, ctx_len)


def test_the_67_numbers_of_slots_that_the_reference_trainer_refuses():
    warned = [slots for slots in range(3, 2000) if coverage_warning(slots, 1)]
    assert len(warned) == 67
    assert warned[-1] == 227
    assert coverage_warning(233, 16) == (
        "training at ctx_len 16 reaches 11 of 14 slots of this small corpus, and RWKV-LM's trainer "
        "refuses to start; 288 tokens would do"
    )
