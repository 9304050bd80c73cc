"""The elementwise operators on a CPU: values, gradients, and what torch builds on operators."""

import pytest
import torch
from elementwise_cases import CASES, exact, make, run

from rwkvkit.ops import fused
from rwkvkit.ops.cuda import head_work, token_mixing

SHAPE = (2, 5, 2, 64)


@pytest.mark.parametrize("name", CASES)
def test_on_a_cpu_they_are_the_plain_form(name):
    case = make(name, SHAPE)
    found, want = run(fused, case, dtype=torch.float64), exact(case)
    for key, x in want.items():
        torch.testing.assert_close(found[key], x)


@pytest.mark.parametrize("name", CASES)
def test_in_one_graph(name):
    case = make(name, SHAPE)
    names = list(case.inputs)

    def call(*tensors):
        given = dict(zip(names, tensors, strict=True))
        outputs = case.kind.call(fused, given, case.resets, case.heads)
        return [2 * y for y in outputs]

    leaves = [x.float().requires_grad_() for x in case.inputs.values()]
    grads = [x.float() for x in case.grads]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, want = (torch.autograd.grad(f(*leaves), leaves, grads) for f in (compiled, call))
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize("given", [False, True])
def test_opcheck_of_the_mix(given):
    x, mixes = floats(2, 5, 64), [floats(64) for _ in range(6)]
    last, starts = (floats(2, 64), torch.rand(2, 5) < 0.3) if given else (None, None)
    torch.library.opcheck(token_mixing.shift_mix, (x, last, starts, mixes))
    plain = [None if y is None else y.detach() for y in (x, last, starts)]
    grads = [torch.randn(2, 5, 64) for _ in mixes]
    arguments = (*plain, [mix.detach() for mix in mixes], grads, given)
    torch.library.opcheck(token_mixing.shift_mix_backward, arguments)


def test_opcheck_of_the_squared_relu():
    torch.library.opcheck(token_mixing.relu_squared, (floats(3, 8),))
    torch.library.opcheck(token_mixing.relu_squared_backward, (torch.rand(3, 8), torch.randn(3, 8)))


def test_opcheck_of_what_is_done_by_head():
    vectors, weights = [floats(2, 3, 128) for _ in range(3)], [floats(128) for _ in range(4)]
    torch.library.opcheck(head_work.prepare_keys, (*vectors, *weights, 2, 64))
    plain = [x.detach() for x in (*vectors, *weights)]
    grads = [torch.randn(2, 3, 2, 64) for _ in range(4)]
    for want in (False, True):
        torch.library.opcheck(head_work.prepare_keys_backward, (*plain, *grads, want))
    vectors = [*(floats(2, 3, 2, 64) for _ in range(4)), floats(2, 3, 128)]
    torch.library.opcheck(head_work.norm_gate, (*vectors, *weights[:3], 1e-3))
    plain = [x.detach() for x in (*vectors, *weights[:3])]
    for want in (False, True):
        arguments = (torch.randn(2, 3, 128), *plain, 1e-3, want)
        torch.library.opcheck(head_work.norm_gate_backward, arguments)


def test_opcheck_of_the_values():
    vectors, v0 = [floats(2, 3, 64) for _ in range(3)], floats(64)
    torch.library.opcheck(token_mixing.residual_value, (*vectors, v0))
    plain = [x.detach() for x in (vectors[0], *vectors, v0)]
    for want in (False, True):
        torch.library.opcheck(token_mixing.residual_value_backward, (*plain, want))


def test_a_key_without_a_direction():
    case = make("keys", SHAPE)
    case.inputs["k"][0, 1, :64] = 0
    found, want = run(fused, case, dtype=torch.float64), exact(case)
    for key, x in want.items():
        torch.testing.assert_close(found[key], x)
