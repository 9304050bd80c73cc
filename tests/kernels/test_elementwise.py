"""The elementwise kernels, run on a CPU, against float64: sources, launches and operators."""

from collections.abc import Callable, Iterator

import pytest
import torch
from elementwise_cases import CASES, Case, error, exact, make, run
from emulator import Emulator, waits
from torch import Tensor

from rwkvkit.ops import fused
from rwkvkit.ops.cuda import elementwise_kernels, launch
from rwkvkit.ops.cuda.compile import Program

LIMITS = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # rounding the results is 1.7e-3 and 2e-4


@pytest.fixture
def emulated(emulators, monkeypatch) -> Iterator[set[Program]]:
    """Operators launch kernels in the emulator; what nobody has written is NaN."""
    used: set[Program] = set()

    def start(program: Program, *rest: object) -> None:
        used.add(program)
        emulators(program).launch(*rest)

    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    torch.use_deterministic_algorithms(True)
    yield used
    torch.use_deterministic_algorithms(False)


def worst(found: dict[str, Tensor], case: Case) -> tuple[float, str]:
    want = exact(case)
    assert found.keys() == want.keys()
    assert all(x.dtype == case.dtype for x in found.values())
    errors = {name: error(found[name], want[name]) for name in want}
    return max((float("inf") if e != e else e, name) for name, e in errors.items())


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 64, 250])
@pytest.mark.parametrize("name", CASES)
def test_against_float64(emulated, name, tokens):
    case = make(name, (1 if tokens == 64 else 2, tokens, 2, 64))
    found, which = worst(run(fused, case), case)
    assert found < LIMITS[case.dtype], which
    assert emulated


@pytest.mark.parametrize("shape", [(1, 33, 3, 64), (3, 33, 1, 64), (2, 150, 1, 128)])
@pytest.mark.parametrize("name", CASES)
def test_batches_and_heads(emulated, name, shape):
    case = make(name, shape, dtype=torch.float16 if shape[0] == 3 else torch.bfloat16)
    found, which = worst(run(fused, case), case)
    assert found < LIMITS[case.dtype], which


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_warps_changes_no_bit(emulated, emulators, name):
    case = make(name, (2, 150, 1, 64))
    outcomes = [run(fused, case)]
    for seed in (2, 3):
        for program in list(emulated):
            emulators(program).seed = seed

        outcomes.append(run(fused, case))
    for other in outcomes[1:]:
        assert all(torch.equal(outcomes[0][name], other[name]) for name in other)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sums])
def test_a_barrier_taken_out_shows(emulated, emulators: Callable[[Program], Emulator], name):
    """Every wait of the kernels is needed: without it some result changes."""
    case = make(name, (1, 150, 1, 64))

    def outcome() -> list[Tensor]:
        return [x.nan_to_num(nan=3e4) for x in run(fused, case).values()]

    want = outcome()
    for program in list(emulated):
        for line in waits(program.file):
            with emulators(program).without(program.file, line):
                changed = not all(map(torch.equal, outcome(), want))
            assert changed, (program.file, line)


def test_no_sums_are_made_for_frozen_weights(emulated, monkeypatch):
    """With an adapter, weights a channel do not train; the other gradients stay as they are."""
    for name, kind in CASES.items():
        if not kind.sums:
            continue
        case = make(name, (1, 20, 1, 64))
        whole = run(fused, case)
        with monkeypatch.context() as patch:
            patch.setattr(elementwise_kernels, "_partial", None)  # what sums are made in
            frozen = run(fused, case, frozen=kind.sums)
        assert frozen.keys() == whole.keys() - {f"d{weight}" for weight in kind.sums}
        assert all(torch.equal(whole[key], x) for key, x in frozen.items())


def test_a_key_without_a_direction(emulated):
    """Its norm counts as 1e-12, in the gradient too."""
    case = make("keys", (1, 3, 2, 64))
    case.inputs["k"][0, 1, :64] = 0
    found, want = run(fused, case), exact(case)
    for name, x in want.items():
        torch.testing.assert_close(found[name].double(), x, rtol=1e-2, atol=1e-2)


def test_what_kernels_do_not_take_is_left_to_pytorch(emulated):
    """Tensors in fp32 on a GPU."""
    for name in CASES:
        case = make(name, (1, 3, 1, 64))
        found, want = run(fused, case, dtype=torch.float32), exact(case)
        assert max(error(found[key], x) for key, x in want.items()) < 1e-5
    assert not emulated
