"""The WKV6 and WKV5 operators of the GPU, with their registration, on a CPU."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from wkv_cases import error, inputs, starts, states, value_and_grads

from rwkvkit.errors import UsageError
from rwkvkit.ops import rwkv6, wkv5, wkv6
from rwkvkit.ops.cuda import wkv6 as cuda_wkv6
from rwkvkit.ops.cuda.wkv6_kernels import Shape, precise_program

SHAPE = (2, 37, 2, 16)
OPS = {"wkv5": wkv5, "wkv6": wkv6}


def run(tensors, state=None, resets=None, origin=None, precise=True):
    return cuda_wkv6.wkv(*tensors, state, resets, origin, precise=precise)


@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("with_origin", [False, True])
@pytest.mark.parametrize("with_starts", [False, True])
def test_gradients_of_every_input(op, with_state, with_origin, with_starts):
    tensors = inputs(op, SHAPE)
    state, origin = states(SHAPE)
    resets = starts(SHAPE) if with_starts else None
    given = {"state": state} if with_state else {}
    given |= {"origin": origin} if with_origin else {}
    leaves = [*tensors, *given.values()]
    want = value_and_grads(
        OPS[op](*tensors, given.get("state"), resets, origin=given.get("origin"), impl="naive"),
        leaves,
    )
    got = value_and_grads(
        run(tensors, given.get("state"), resets, given.get("origin")),
        leaves,
    )
    assert all(error(x, y) < 1e-9 for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
def test_precise_is_chosen_by_name(op):
    tensors = inputs(op, SHAPE)
    found, want = (
        value_and_grads(OPS[op](*tensors, impl=impl), tensors) for impl in ("precise", "naive")
    )
    assert all(error(x, y) < 1e-9 for x, y in zip(found, want, strict=True))


def test_cuda_is_refused_on_a_cpu():
    with pytest.raises(UsageError, match="tensors are on cpu"):
        wkv6(*inputs("wkv6", SHAPE), impl="cuda")


def test_the_choice_knows_what_the_kernels_need():
    for size, needs in rwkv6.KERNELS.items():
        shape = Shape(size)
        assert needs.chunked == shape.backward_shared_bytes() >= shape.forward_shared_bytes()
        assert needs.precise == dict(precise_program(size).defines)["SHARED_BYTES"]
        assert needs.turing is None


def test_origin_behind_strong_decays():
    tensors = inputs("wkv6", SHAPE, w_raw=(-5.0, 20.0))
    _, origin = states(SHAPE)
    resets = starts(SHAPE)
    leaves = [*tensors[:3], tensors[4], origin]
    want = value_and_grads(wkv6(*tensors, None, resets, origin=origin, impl="naive"), leaves)
    got = value_and_grads(run(tensors, None, resets, origin), leaves)
    assert all(error(x, y) < 1e-9 for x, y in zip(got, want, strict=True))


def test_the_types_computed_in():
    tensors = [x.detach().to(torch.bfloat16).requires_grad_() for x in inputs("wkv6", SHAPE)]
    y, final = run(tensors, precise=False)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert run(tensors)[0].dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(x.grad.dtype == torch.bfloat16 for x in tensors)


def test_the_batch_may_share_the_decay():
    r, k, v, log_w, u = inputs("wkv6", SHAPE)
    shared = log_w.detach()[:1].requires_grad_()
    leaves = [r, k, v, shared, u]
    want = value_and_grads(wkv6(*leaves, impl="naive"), leaves)
    got = value_and_grads(run(leaves), leaves)
    assert all(error(x, y) < 1e-9 for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_the_operators_are_registered_well(op, precise, full):
    shape = (1, 18, 2, 8)
    dtype = torch.float32 if precise else torch.bfloat16
    r, k, v, log_w, u = (x.detach() for x in inputs(op, shape, dtype=torch.float32))
    decay = log_w.to(dtype) if op == "wkv6" else log_w
    state = states(shape, torch.float32)[0].detach() if full else None
    resets = starts(shape) if full else None
    tensors = (r.to(dtype), k.to(dtype), v.to(dtype), decay, u, state)

    leaves = [x if x is None else x.clone().requires_grad_() for x in tensors]
    torch.library.opcheck(cuda_wkv6._forward, (*leaves, resets, precise, True))
    y, final, kept = cuda_wkv6._forward(*tensors, resets, precise, True)
    gradients = (kept, torch.ones_like(y), final if full else None)
    torch.library.opcheck(cuda_wkv6._backward, (*tensors, resets, *gradients, precise, full))


def test_compiles_whole():
    torch.compiler.reset()
    tensors = inputs("wkv6", SHAPE, dtype=torch.float32)
    state, _ = states(SHAPE, torch.float32)

    def model(*tensors):
        y, final = run(tensors[:5], tensors[5])
        return torch.tanh(y), final

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaves = [*tensors, state]
    want = value_and_grads(model(*leaves), leaves)
    got = value_and_grads(compiled(*leaves), leaves)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    def gradients(call):
        tensors = inputs("wkv6", SHAPE, dtype=torch.float32)
        y, final = call(tensors)
        (y.square().sum() + final.square().sum()).backward()
        return [x.grad for x in tensors]

    want = gradients(run)
    got = gradients(lambda x: checkpoint(lambda *y: run(y), *x, use_reentrant=reentrant))
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
