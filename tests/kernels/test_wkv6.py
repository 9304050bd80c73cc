"""The WKV6 and WKV5 kernels, run by the emulator, against float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from emulator import Emulator, waits
from wkv6_cases import Case, error, exact, make, run

from rwkvkit.ops import wkv5, wkv6
from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda import wkv6 as operator
from rwkvkit.ops.cuda import wkv6_kernels as kernels
from rwkvkit.ops.cuda.compile import Program

BF16 = 5e-3  # rounding the results alone is 1.7e-3
STARTS = [3, 16, 17, 40, 79, 96, 200, 249]

Emulators = Callable[[Program], Emulator]


@pytest.fixture(autouse=True)
def on_the_emulator(emulators: Emulators, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launch there, and fill memory with NaN that nobody has written."""

    def start(program: Program, kernel: str, *arguments: object) -> None:
        emulators(program).launch(kernel, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "launch", start)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def compare(case: Case, limit: float = BF16, **shape: int | bool) -> dict[str, torch.Tensor]:
    got, want = run(case, **shape), exact(case)
    assert got.keys() == want.keys()
    errors = {name: error(got[name], want[name]) for name in want}
    assert all(x <= limit for x in errors.values()), errors
    return got


@pytest.mark.parametrize(
    ("tokens", "state", "dfinal", "starts", "op"),
    [
        (1, False, False, None, "wkv6"),
        (1, True, True, None, "wkv5"),
        (1, True, True, [0], "wkv6"),
        (15, True, False, None, "wkv6"),
        (15, False, True, STARTS, "wkv5"),
        (16, False, True, None, "wkv6"),
        (16, True, False, STARTS, "wkv6"),
        (17, True, True, None, "wkv5"),
        (17, False, False, STARTS, "wkv6"),
        (64, True, True, None, "wkv6"),
        (64, True, True, STARTS, "wkv5"),
        (250, True, True, None, "wkv6"),
        (250, True, True, STARTS, "wkv6"),
        (250, False, False, None, "wkv5"),
    ],
)
def test_results_and_gradients(tokens, state, dfinal, starts, op):
    batch, heads = (3, 1) if tokens < 64 else (2, 2)
    shape = (batch, tokens, heads, 64)
    compare(make(shape, op=op, state=state, dfinal=dfinal, starts=starts))


@pytest.mark.parametrize("starts", [[], STARTS])
@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
def test_head_size_128(op, starts):
    compare(make((2, 50, 1, 128), op=op, state=True, dfinal=True, starts=starts))


def test_fp16():
    compare(make((1, 50, 2, 64), dtype=torch.float16, state=True, dfinal=True))


def test_another_tiling_gives_the_same():
    case = make((1, 100, 1, 64), state=True, dfinal=True)
    got = compare(case, spacing=2, split=True)
    usual = run(case)
    assert torch.equal(got["y"], usual["y"])
    assert all(error(got[name], usual[name]) < 1e-3 for name in usual)


@pytest.mark.parametrize(
    ("w_raw", "starts"),
    [
        ((-9.0, -7.0), None),  # hardly any decay
        ((1.0, 3.5), None),  # e^-2.7 to e^-33
        ((-8.0, 3.5), STARTS),
        ((-8.0, 88.0), None),  # to e^-1.6e38
        ((88.0, 88.0), STARTS),
    ],
)
def test_any_decay(w_raw, starts):
    compare(make((1, 100, 1, 64), w_raw=w_raw, state=True, dfinal=True, starts=starts))


@pytest.mark.parametrize("w_raw", [(2.3, 2.31), (3.4, 3.5)])
def test_decays_all_at_and_beyond_the_floor(w_raw):
    """The decay's gradient is then 2^-15 of what it is the difference of, or less."""
    case = make((1, 100, 1, 64), w_raw=w_raw, state=True, dfinal=True)
    got = compare(case, limit=1.2e-2)
    want = exact(case)
    assert all(error(got[name], want[name]) < BF16 for name in want if name != "dlog_w")


@pytest.mark.parametrize("w_raw", [(-8.0, 3.5), (1.0, 2.35)])
def test_small_gradients_with_denormals_flushed(w_raw):
    case = make((1, 100, 1, 64), w_raw=w_raw, state=True, dfinal=True, gradient=1e-14)
    compare(case)


def test_like_keys_and_slow_decay():
    compare(make((1, 250, 1, 64), w_raw=(-9.0, -6.0), state=True, dfinal=True, correlated=True))


@pytest.mark.parametrize("size", [64, 128])
def test_the_order_of_warps_changes_nothing(emulators, size):
    case = make((1, 80, 2, size), state=True, dfinal=True, starts=STARTS)
    shape = kernels.Shape(size, resets=True)
    results = []
    for seed in (1, 2, 3):
        for program in (shape.forward_program(), shape.backward_program()):
            emulators(program).seed = seed
        results.append(run(case))
    for other in results[1:]:
        assert all(torch.equal(other[name], x) for name, x in results[0].items())


@pytest.mark.parametrize("file", ["wkv6_forward.cu", "wkv6_backward.cu"])
def test_a_missing_barrier_shows(emulators, file):
    case = make((1, 100, 1, 64), state=True, dfinal=True)
    shape = kernels.Shape(64)
    forward = file == "wkv6_forward.cu"
    emulator = emulators(shape.forward_program() if forward else shape.backward_program())
    whole = run(case)
    lines = waits(file)
    assert len(lines) == (1 if forward else 2)
    for line in lines:
        emulator.take_out(file, line)
        broken = run(case)
        assert any(not torch.equal(broken[name], x) for name, x in whole.items()), line
    emulator.take_out("", 0)


@pytest.mark.parametrize(
    ("shape", "op", "w_raw", "starts"),
    [
        ((2, 1, 1, 64), "wkv6", (-6.0, 1.0), None),
        ((2, 17, 2, 64), "wkv6", (-6.0, 1.0), STARTS),
        ((1, 33, 1, 64), "wkv5", (-6.0, 1.0), STARTS),
        ((1, 50, 1, 64), "wkv6", (-8.0, 3.5), None),
        ((1, 50, 1, 64), "wkv6", (3.4, 88.0), None),
        ((1, 33, 1, 128), "wkv6", (-6.0, 1.0), STARTS),
    ],
)
def test_precise(shape, op, w_raw, starts):
    case = make(
        shape,
        op=op,
        dtype=torch.float32,
        w_raw=w_raw,
        state=True,
        dfinal=True,
        starts=starts,
    )
    compare(case, limit=2e-6)


def test_precise_without_states():
    compare(make((1, 20, 1, 64), dtype=torch.float32), limit=2e-6)


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
def test_the_operator_hands_over_to_the_kernels(monkeypatch, op, precise):
    """With a tuned state at each document's start, which is added to what the kernels compute."""
    monkeypatch.setattr(operator, "_on_gpu", lambda _: True)
    dtype = torch.float32 if precise else torch.bfloat16
    case = make((2, 50, 1, 64), op=op, dtype=dtype, state=True, dfinal=True, starts=STARTS)
    origin = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))

    def gradients(exactly: bool) -> list[torch.Tensor]:
        tensors = (*case.tensors, case.state, origin)
        leaves = [(x.double() if exactly else x.clone()).requires_grad_() for x in tensors]
        if exactly:
            run_op = wkv5 if op == "wkv5" else wkv6
            y, final = run_op(*leaves[:6], case.resets, origin=leaves[6], impl="naive")
        else:
            y, final = operator.wkv(*leaves[:6], case.resets, leaves[6], precise=precise)
        loss = (y * case.dy).sum() + (final * case.dfinal).sum()
        return [y, final, *torch.autograd.grad(loss, leaves)]

    limit = 2e-6 if precise else BF16
    found, want = gradients(False), gradients(True)
    assert max(error(x, y) for x, y in zip(found, want, strict=True)) < limit
