import itertools

import pytest
import torch
from wkv_cases import OPS, error, inputs, starts, states, value_and_grads

from rwkvkit.errors import UsageError
from rwkvkit.ops import rwkv6, rwkv7, wkv6, wkv7

EACH_OP = pytest.mark.parametrize("op", OPS)
EACH_IMPL = pytest.mark.parametrize("impl", ["naive", "chunked"])


@EACH_OP
@EACH_IMPL
def test_gradients_are_the_derivatives(op, impl, monkeypatch):
    for module in (rwkv6, rwkv7):
        monkeypatch.setattr(module, "CHUNK", 4)
    shape = (1, 9, 1, 4)
    state, origin = states(shape)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, [3, 6, 7]] = True

    def run(*tensors):
        *args, state, origin = tensors
        return OPS[op](*args, state, resets, origin=origin, impl=impl)

    assert torch.autograd.gradcheck(run, (*inputs(op, shape), state, origin))


@EACH_OP
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 33, 64, 100])
@pytest.mark.parametrize("documents", [False, True])
def test_chunked_equals_naive(op, tokens, documents):
    shape = (2, tokens, 2, 8)
    args = inputs(op, shape)
    state, origin = states(shape)
    resets = starts(shape) if documents else None
    naive, chunked = (
        value_and_grads(
            OPS[op](*args, state, resets, origin=origin, impl=impl), [*args, state, origin]
        )
        for impl in ("naive", "chunked")
    )
    assert max(error(got, want) for got, want in zip(chunked, naive, strict=True)) < 1e-10


@EACH_OP
@EACH_IMPL
@pytest.mark.parametrize("with_origin", [False, True])
def test_resets_equal_running_the_documents_separately(op, impl, with_origin):
    shape = (1, 75, 2, 8)
    args = inputs(op, shape)
    state, origin = states(shape)
    kwargs = {"origin": origin if with_origin else None, "impl": impl}
    leaves = [*args, state, *([origin] if with_origin else [])]
    cuts = [0, 5, 6, 32, 40, 64, 75]
    resets = torch.zeros(1, 75, dtype=torch.bool)
    resets[0, cuts[1:-1]] = True

    pieces, final = [], state
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        piece = [x[:, start:end] if x.dim() == 4 else x for x in args]
        y, final = OPS[op](*piece, state if number == 0 else None, **kwargs)
        pieces.append(y)
    want = value_and_grads((torch.cat(pieces, 1), final), leaves)
    got = value_and_grads(OPS[op](*args, state, resets, **kwargs), leaves)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@EACH_OP
@EACH_IMPL
def test_a_reset_at_the_first_token_discards_the_state(op, impl):
    shape = (2, 20, 2, 4)
    args = inputs(op, shape)
    state, _ = states(shape)
    resets = torch.zeros(2, 20, dtype=torch.bool)
    resets[:, 0] = True
    y, final = OPS[op](*args, state, resets, impl=impl)
    fresh_y, fresh_final = OPS[op](*args, impl=impl)
    torch.testing.assert_close(y, fresh_y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(final, fresh_final, rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(y.sum() + final.sum(), state)[0].count_nonzero() == 0


@EACH_OP
def test_one_call_equals_many_that_hand_the_state_on(op):
    shape = (2, 50, 2, 8)
    args = inputs(op, shape)
    whole, final = OPS[op](*args)
    state, pieces = None, []
    for start, end in [(0, 1), (1, 2), (2, 35), (35, 36), (36, 50)]:
        piece = [x[:, start:end] if x.dim() == 4 else x for x in args]
        y, state = OPS[op](*piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=1e-11, atol=1e-11)


@EACH_OP
def test_memory_layout_does_not_matter(op):
    args = inputs(op, (2, 40, 2, 8))
    strange = [
        x.detach().transpose(1, 2).contiguous().transpose(1, 2)
        if x.dim() == 4
        else x.mT.contiguous().mT
        for x in args
    ]
    assert not any(x.is_contiguous() for x in strange)
    assert torch.equal(OPS[op](*strange)[0], OPS[op](*args)[0])


@EACH_OP
@EACH_IMPL
def test_bfloat16_is_computed_in_float32(op, impl):
    args = [x.detach().bfloat16() for x in inputs(op, (2, 40, 2, 8))]
    y, final = OPS[op](*args, impl=impl)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    precise, precise_final = OPS[op](*(x.float() for x in args), impl=impl)
    assert torch.equal(y, precise.bfloat16())
    assert torch.equal(final, precise_final)


@EACH_OP
@EACH_IMPL
def test_autocast_does_not_reach_the_recurrence(op, impl):
    args = inputs(op, (2, 40, 2, 8), dtype=torch.float32)
    y, final = OPS[op](*args, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        y_cast, final_cast = OPS[op](*args, impl=impl)
    assert torch.equal(y, y_cast)
    assert torch.equal(final, final_cast)


@EACH_OP
@EACH_IMPL
def test_tensors_without_data_have_the_shapes(op, impl):
    shape = (2, 20, 3, 8)
    want = OPS[op](*inputs(op, shape), impl=impl)
    got = OPS[op](*(x.detach().to("meta") for x in inputs(op, shape)), impl=impl)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in want]


@EACH_OP
def test_auto_is_the_loop_for_one_token(op):
    args = inputs(op, (2, 1, 2, 8), dtype=torch.float32)
    assert torch.equal(OPS[op](*args)[0], OPS[op](*args, impl="naive")[0])


def test_shapes_are_checked():
    r, k, v, log_w, u = inputs("wkv6", (2, 5, 2, 4))
    with pytest.raises(UsageError, match=r"k has shape \(2, 4, 2, 4\), expected \(2, 5, 2, 4\)"):
        wkv6(r, k[:, 1:], v, log_w, u)
    with pytest.raises(UsageError, match="log_w has shape"):
        wkv6(r, k, v, log_w[:, 1:], u)
    with pytest.raises(UsageError, match="log_w is empty"):
        wkv6(*(x[:, :0] for x in (r, k, v, log_w)), u)
    with pytest.raises(UsageError, match="state has shape"):
        wkv7(*inputs("wkv7", (2, 5, 2, 4)), torch.zeros(2, 4, 4))


def test_an_unknown_impl_names_the_known_ones():
    with pytest.raises(UsageError, match="use one of 'auto', 'naive', 'chunked'"):
        wkv6(*inputs("wkv6", (2, 5, 2, 4)), impl="tpu")
