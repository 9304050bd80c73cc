"""The WKV7 kernels, run on a CPU, against float64: the sources that a GPU gets, launch included."""

from collections.abc import Callable

import pytest
import torch
from emulator import Emulator, waits
from torch import Tensor
from wkv7_cases import NAMES, Case, error, exact, make, run, run_precise

from rwkvkit.ops import rwkv7, wkv7
from rwkvkit.ops.cuda import launch, wkv7_kernels
from rwkvkit.ops.cuda.compile import Program
from rwkvkit.ops.cuda.wkv7_kernels import Shape, usual_shape

STARTS = [0, 5, 16, 17, 31, 47, 48, 63, 70, 79]  # twice in a chunk, at its ends, two in a row
EXTRAS = {
    "plain": {},
    "state": {"state": True},
    "dfinal": {"dfinal": True},
    "both": {"state": True, "dfinal": True},
    "documents": {"starts": STARTS},
    "origin": {"state": True, "dfinal": True, "origin": True, "starts": STARTS},
    "correlated": {"correlated": True, "dfinal": True},
}


@pytest.fixture
def emulated(emulators, monkeypatch) -> Callable[[Program], Emulator]:
    """Kernels are launched in the emulator."""

    def start(program: Program, *rest: object) -> None:
        emulators(program).launch(*rest)

    monkeypatch.setattr(launch, "launch", start)
    return emulators


def worst(found: dict[str, Tensor], case: Case) -> float:
    want = exact(case)
    assert found.keys() == want.keys()
    errors = {name: error(found[name], want[name]) for name in want}
    return max((float("inf") if e != e else e) for e in errors.values())


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 64, 250])
@pytest.mark.parametrize("extra", EXTRAS)
def test_chunked(emulated, extra, tokens):
    case = make((1 if tokens == 250 else 2, tokens, 2, 64), **EXTRAS[extra])
    assert worst(run(case), case) < (8e-3 if extra == "correlated" or tokens == 1 else 6e-3)


@pytest.mark.parametrize("shape", [(1, 33, 3, 64), (3, 33, 1, 64)])
def test_batches_and_heads(emulated, shape):
    case = make(shape, state=True, origin=True, starts=STARTS)
    assert worst(run(case), case) < 6e-3


@pytest.mark.parametrize(
    ("size", "dtype", "extra", "shape", "bound"),
    [
        (64, torch.float16, "origin", {"buffers": 1}, 8e-4),
        (64, torch.float16, "origin", {}, 8e-4),
        (64, torch.bfloat16, "both", {"checkpoint_chunks": 4}, 6e-3),
        (64, torch.bfloat16, "plain", {"checkpoint_chunks": 4}, 6e-3),
        (64, torch.bfloat16, "origin", {"buffers": 1}, 6e-3),
        (128, torch.bfloat16, "origin", {"buffers": 1}, 6e-3),
        (128, torch.float16, "origin", {"buffers": 1}, 8e-4),
    ],
)
@pytest.mark.parametrize("tokens", [1, 17, 100])
def test_other_shapes(emulated, size, dtype, extra, shape, bound, tokens):
    case = make((1, tokens, 2, size), dtype=dtype, **EXTRAS[extra])
    assert worst(run(case, **shape), case) < (1.4 * bound if tokens == 1 else bound)


@pytest.mark.parametrize(("size", "extra"), [*((64, extra) for extra in EXTRAS), (128, "origin")])
@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_precise(emulated, size, extra, tokens):
    case = make((2, tokens, 2, size), **EXTRAS[extra])
    assert worst(run_precise(case), case) < 1e-6


def test_the_order_of_warps_changes_no_bit(emulated, emulators):
    case = make((2, 250, 1, 64), **EXTRAS["origin"])
    shape = Shape(64, resets=True)
    outcomes = []
    for seed in (1, 2, 3):
        for program in (shape.forward_program(), shape.backward_program()):
            emulators(program).seed = seed
        outcomes.append(run(case))
    for other in outcomes[1:]:
        assert all(torch.equal(outcomes[0][name], other[name]) for name in other)


@pytest.mark.parametrize(
    "file", ["wkv7_chunk.cuh", "wkv7_forward.cu", "wkv7_backward.cu", "wkv7_precise.cu"]
)
def test_a_barrier_taken_out_shows(emulated, emulators, file):
    """Every wait of the kernels is needed: without it some result changes."""
    documents = make((1, 70, 1, 64), starts=[3, 20, 21], origin=True, state=True, dfinal=True)
    plain = make((1, 70, 1, 64), state=True, dfinal=True)
    if file == "wkv7_precise.cu":
        programs = [wkv7_kernels.precise_program(64)]
        runs = [lambda: run_precise(documents)]
    else:
        shapes = [Shape(64, resets=True), Shape(64, checkpoint_chunks=4), Shape(64, buffers=1)]
        programs = [p for s in shapes for p in (s.forward_program(), s.backward_program())]
        runs = [
            lambda: run(documents),
            lambda: run(plain, checkpoint_chunks=4),
            lambda: run(plain, buffers=1),
        ]

    def changed(want: list[list[Tensor]]) -> bool:
        for number, kernels in enumerate(runs):
            found = [x.nan_to_num(nan=1e30) for x in kernels().values()]
            if not all(torch.equal(x, y) for x, y in zip(found, want[number], strict=True)):
                return True
        return False

    want = [[x.nan_to_num(nan=1e30) for x in kernels().values()] for kernels in runs]
    assert not changed(want)
    missed = []
    for line in waits(file):
        for program in programs:
            emulators(program).take_out(file, line)
        if not changed(want):
            missed.append(line)
    for program in programs:
        emulators(program).take_out("", 0)
    assert missed == []


def test_the_operator_on_emulated_kernels(emulated, monkeypatch):
    """The public function, its choice apart, with the kernels behind it: T, origin, strides."""
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(rwkv7.inputs, "choose", lambda impl, *_: rwkv7.inputs.Choice(impl, ""))
    case = make((2, 37, 2, 64), state=True, origin=True, starts=[0, 5, 20], dfinal=True)
    want = exact(case)
    for impl, bound in (("cuda", 6e-3), ("precise", 1e-6)):
        vectors = [x.clone().transpose(1, 2).contiguous().transpose(1, 2) for x in case.vectors]
        vectors[1] = vectors[1].float()
        leaves = [x.requires_grad_() for x in (*vectors, case.state.clone(), case.origin.clone())]
        y, final = wkv7(*leaves[:7], case.resets, origin=leaves[7], impl=impl)
        loss = (y.float() * case.dy.float()).sum() + (final * case.dfinal).sum()
        loss.backward()
        names = ["d" + name for name in (*NAMES, "state", "origin")]
        for name, leaf in zip(names, leaves, strict=True):
            rounding = 4e-3 if impl == "precise" else 0  # of gradients to the leaves' bf16
            assert error(leaf.grad, want[name]) < bound + rounding, (impl, name)
        assert error(y, want["y"]) < 6e-3
        assert error(final, want["final"]) < bound


def test_the_numbers_that_choose_a_kernel_are_the_kernels():
    for size, needs in rwkv7.KERNELS.items():
        wide, fp16 = (usual_shape(size, fp16=fp16, resets=False) for fp16 in (False, True))
        assert needs.chunked == wide.backward_shared_bytes() >= wide.forward_shared_bytes()
        assert needs.precise == dict(wkv7_kernels.precise_program(size).defines)["SHARED_BYTES"]
        assert needs.turing == (fp16.backward_shared_bytes() if size == 64 else None)
