"""The registered WKV7 operators on a CPU: values, gradients, and what torch builds on operators."""

import re
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from wkv_cases import error, inputs, starts, states, value_and_grads

from rwkvkit.errors import SetupError, UsageError
from rwkvkit.ops import inputs as wkv_inputs
from rwkvkit.ops import rwkv6, wkv7
from rwkvkit.ops.cuda import wkv7_plain
from rwkvkit.ops.cuda.compile import toolkit_versions
from rwkvkit.ops.cuda.wkv7 import wkv7_backward, wkv7_forward
from rwkvkit.ops.inputs import Choice, choose
from rwkvkit.ops.rwkv7 import KERNELS

SHAPE = (2, 19, 2, 8)
BF16, FP32 = torch.bfloat16, torch.float32
ADA = {"capability": (8, 9), "shared": 101376}
TURING = {"capability": (7, 5), "shared": 65536}


def arguments(dtype: torch.dtype = torch.float64):
    vectors = inputs("wkv7", SHAPE, dtype=dtype)
    state, origin = states(SHAPE, dtype=dtype)
    return vectors, state, origin, starts(SHAPE)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("with_origin", [False, True])
def test_precise_on_a_cpu_equals_the_loop(documents, with_origin):
    vectors, state, origin, resets = arguments()
    leaves = [*vectors, state, *([origin] if with_origin else [])]
    found, want = (
        value_and_grads(
            wkv7(
                *vectors,
                state,
                resets if documents else None,
                origin=origin if with_origin else None,
                impl=impl,
            ),
            leaves,
        )
        for impl in ("precise", "naive")
    )
    assert max(error(x, y) for x, y in zip(found, want, strict=True)) < 1e-12


def test_an_origin_is_the_first_state():
    vectors, _, origin, resets = arguments()
    found, want = (
        value_and_grads(wkv7(*vectors, None, resets, origin=origin, impl=impl), [*vectors, origin])
        for impl in ("precise", "naive")
    )
    assert max(error(x, y) for x, y in zip(found, want, strict=True)) < 1e-12


@pytest.mark.parametrize("output", [0, 1])
def test_gradients_of_one_output_alone(output):
    vectors, state, _, _ = arguments()
    found, want = (
        torch.autograd.grad(
            wkv7(*vectors, state, impl=impl)[output].square().sum(),
            [*vectors, state],
            allow_unused=True,
            materialize_grads=True,
        )
        for impl in ("precise", "naive")
    )
    assert max(error(x, y) for x, y in zip(found, want, strict=True)) < 1e-12


@pytest.mark.parametrize("given", [False, True])
def test_opcheck(given):
    vectors, state, origin, resets = arguments(torch.float32)
    extras = (state, origin, resets) if given else (None, None, None)
    torch.library.opcheck(wkv7_forward, (*vectors, *extras, True, True))
    half = [x.detach().bfloat16() for x in vectors]
    torch.library.opcheck(wkv7_forward, (*half, *extras, False, True))
    with torch.no_grad():
        y, final, checkpoints = wkv7_forward(*vectors, *extras, True, True)
    plain = [x.detach() for x in vectors]
    backward = (*plain, y, *extras[1:], checkpoints, final, True, given, given)
    torch.library.opcheck(
        wkv7_backward, [x.detach() if hasattr(x, "detach") else x for x in backward]
    )


def test_compile_in_one_graph():
    vectors, state, origin, resets = arguments(torch.float32)

    def run(*tensors):
        *six, state, origin = tensors
        y, final = wkv7(*(2 * x for x in six), state, resets, origin=origin, impl="precise")
        return y.square(), final

    leaves = [*vectors, state, origin]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, want = (value_and_grads(f(*leaves), leaves) for f in (compiled, run))
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_the_choice_breaks_no_graph(monkeypatch, gpu, dtype):
    """The GPU and the toolkit are asked for what torch.compile cannot look into."""
    real, real_choose = toolkit_versions, wkv_inputs.choose
    gpu()
    monkeypatch.setattr("rwkvkit.ops.cuda.compile.toolkit_versions", real)

    def on_gpu(impl, device, dtype, tokens, needs):
        chosen = real_choose(impl, torch.device("cuda"), dtype, tokens, KERNELS[64])
        return Choice("chunked", chosen.reason)

    monkeypatch.setattr(wkv_inputs, "choose", on_gpu)
    vectors, *_ = arguments(dtype)
    compiled = torch.compile(lambda *x: wkv7(*x)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*vectors), wkv7(*vectors)[0])


@pytest.mark.parametrize("selective", [False, True])
def test_checkpointing(selective, monkeypatch):
    vectors, *_ = arguments(torch.float32)
    runs = []
    real = wkv7_plain.forward
    monkeypatch.setattr(
        wkv7_plain, "forward", lambda *args, **kw: runs.append(1) or real(*args, **kw)
    )

    def policy(_, operator, *args, **kwargs):
        kept = "wkv7_forward" in operator.name()
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def block(*six):
        return wkv7(*(x * 1.5 for x in six), impl="precise")[0].square()

    contexts = {"context_fn": lambda: create_selective_checkpoint_contexts(policy)}
    y = checkpoint(block, *vectors, use_reentrant=False, **(contexts if selective else {}))
    found = torch.autograd.grad(y.sum(), vectors)
    assert len(runs) == (1 if selective else 2)
    want = torch.autograd.grad(block(*vectors).sum(), vectors)
    assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))


def test_nothing_is_kept_without_gradients():
    vectors, *_ = arguments(torch.float32)
    args = (*vectors, None, None, None, True)
    assert wkv7_forward(*args, True)[2].shape == (2, 2, 2, 8, 8)
    assert wkv7_forward(*args, False)[2].numel() == 0


CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is not there."""

    def pretend(capability=(9, 0), shared=232448, version="13.0", toolkit=None):
        class Properties:
            shared_memory_per_block_optin = shared

        def versions():
            if toolkit:
                raise SetupError(toolkit, hint="pip install it")

        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
        monkeypatch.setattr("rwkvkit.ops.cuda.compile.toolkit_versions", versions)

    wkv_inputs.look_for_obstacle.cache_clear()
    yield pretend
    wkv_inputs.look_for_obstacle.cache_clear()


@pytest.mark.parametrize(
    ("machine", "dtype", "tokens", "needs", "impl", "reason"),
    [
        ({}, BF16, 9, KERNELS[64], "cuda", "tensor-core kernels"),
        ({}, torch.float16, 9, KERNELS[64], "cuda", "tensor-core kernels"),
        ({}, FP32, 9, KERNELS[64], "precise", "fp32 kernels for fp32"),
        ({}, torch.float64, 9, KERNELS[64], "chunked", "no float64"),
        ({}, BF16, 1, KERNELS[64], "naive", "one token"),
        ({}, BF16, 9, None, "chunked", "no kernel for this head size"),
        (ADA, BF16, 9, KERNELS[64], "cuda", "tensor-core"),
        (ADA, BF16, 9, KERNELS[128], "precise", "139040 bytes .* has 101376"),
        (TURING, BF16, 9, KERNELS[64], "precise", "sm_80 or newer for bfloat16"),
        (TURING, torch.float16, 9, KERNELS[64], "cuda", "tensor-core kernels"),
        (TURING, torch.float16, 9, KERNELS[128], "chunked", "66576 bytes .* has 65536"),
        (TURING, torch.float16, 9, rwkv6.KERNELS[64], "precise", "sm_80 or newer for float16"),
        ({"capability": (7, 0)}, BF16, 9, KERNELS[64], "chunked", "the GPU is an sm_70"),
        ({"version": None}, BF16, 9, KERNELS[64], "chunked", "ROCm"),
        ({"toolkit": "no NVRTC"}, BF16, 9, KERNELS[64], "chunked", r"no NVRTC \(pip install it\)"),
    ],
)
def test_auto_takes_what_the_machine_can(gpu, machine, dtype, tokens, needs, impl, reason):
    gpu(**machine)
    choice = choose("auto", CUDA, dtype, tokens, needs)
    assert choice.impl == impl
    assert re.search(reason, choice.reason), choice.reason


def test_auto_on_a_cpu():
    assert choose("auto", CPU, BF16, 9, KERNELS[64]).impl == "chunked"
    assert "mps" in choose("auto", torch.device("mps"), BF16, 9, KERNELS[64]).reason


@pytest.mark.parametrize(
    ("impl", "device", "dtype", "needs", "message"),
    [
        ("cuda", CPU, BF16, KERNELS[64], "the tensors are on cpu"),
        ("cuda", CUDA, FP32, KERNELS[64], "bf16 or fp16, not float32"),
        ("cuda", CUDA, BF16, None, "no kernel for this head size"),
        ("precise", CUDA, BF16, None, "no kernel for this head size"),
        ("precise", CUDA, torch.float64, KERNELS[64], "not float64"),
    ],
)
def test_a_demand_that_cannot_be_met(impl, device, dtype, needs, message):
    with pytest.raises(UsageError, match=message) as caught:
        choose(impl, device, dtype, 9, needs)
    assert "auto" in caught.value.hint


def test_kernels_that_are_demanded_of_a_gpu_without_them(gpu):
    gpu(**TURING)
    with pytest.raises(UsageError, match="sm_80 or newer for bfloat16"):
        choose("cuda", CUDA, BF16, 9, KERNELS[64])
    assert choose("cuda", CUDA, torch.float16, 9, KERNELS[64]).impl == "cuda"
    with pytest.raises(UsageError, match=r"66576 bytes .* has 65536"):
        choose("precise", CUDA, FP32, 9, KERNELS[128])
    gpu(capability=(7, 0))
    with pytest.raises(UsageError, match="sm_80 or newer for float16"):
        choose("cuda", CUDA, torch.float16, 9, KERNELS[64])


def test_operators_do_not_import_the_compiler():
    code = "import sys, rwkvkit.ops, rwkvkit.model; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
