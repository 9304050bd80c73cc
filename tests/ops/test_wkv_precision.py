"""The chunked operators in float32 against the loop in float64, where it is hard."""

import math

import pytest
import torch
from torch.nn import functional as F
from wkv_cases import OPS, error, inputs, value_and_grads

SHAPE = (1, 200, 2, 64)


def errors(op, args, impl="chunked"):
    exact = [x.detach().double().requires_grad_() for x in args]
    want = value_and_grads(OPS[op](*exact, impl="naive"), exact)
    got = value_and_grads(OPS[op](*args, impl=impl), args)
    assert all(x.isfinite().all() for x in got)
    return [error(g, w) for g, w in zip(got, want, strict=True)]


@pytest.mark.parametrize("op", OPS)
def test_ordinary_inputs(op):
    assert max(errors(op, inputs(op, SHAPE, dtype=torch.float32))) < 2e-6


@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
@pytest.mark.parametrize("w_raw", [(-8.0, 3.0), (2.0, 3.0), (3.0, 60.0)])
def test_strong_decays_are_exact(op, w_raw):
    """Decays from one that hardly fades to exp(-exp(60)): a clamp or a centred form would show."""
    assert max(errors(op, inputs(op, SHAPE, w_raw=w_raw, dtype=torch.float32))) < 2e-6


def test_slow_decay_behind_a_strong_one():
    """Sums of log decays of several hundred, then small ones: no digits of the small are lost."""
    args = inputs("wkv6", SHAPE, w_raw=(-8.0, -4.0), dtype=torch.float32)
    with torch.no_grad():
        args[3][:, ::16] = -500.0
    assert max(errors("wkv6", args)) < 2e-6


def test_correlated_keys_and_slow_decay():
    """All keys alike, rate near 1, decay near 1: where a full-width Neumann inverse overflows."""
    r, log_w, k, v, a, _ = inputs("wkv7", SHAPE, w_raw=(-9.0, -8.0), dtype=torch.float32)
    with torch.no_grad():
        kk = F.normalize(a[:, :1] + 0.01 * a, dim=-1)
    args = [r, log_w, k, v, (-kk).requires_grad_(), (0.999 * kk).requires_grad_()]
    assert max(errors("wkv7", args)) < 1e-5


def test_the_fastest_decay_of_x070():
    args = inputs("wkv7", SHAPE, dtype=torch.float32)
    with torch.no_grad():
        args[1].fill_(-math.exp(-0.5))
    assert max(errors("wkv7", args)) < 5e-6
