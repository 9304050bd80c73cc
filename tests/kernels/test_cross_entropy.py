"""The cross entropy kernel, run on a CPU, against float64; the operator around it."""

from collections.abc import Callable

import pytest
import torch
from emulator import Emulator, waits
from torch import Tensor
from torch.nn import functional as F

from rwkvkit.model.loss import head_loss, lm_loss
from rwkvkit.ops import cross_entropy as plain
from rwkvkit.ops.cuda import cross_entropy as operators
from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda.compile import Program
from rwkvkit.ops.inputs import Choice

PULL = 1e-2  # larger than L2Wrap's, to be seen in 16 bits
HALF_UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # of rounding


@pytest.fixture
def emulated(emulators, monkeypatch) -> Callable[[Program], Emulator]:
    """Tensors count as a GPU's; kernels are launched in the emulator."""

    def start(program: Program, *rest: object, alignment: int) -> None:
        assert alignment == 1  # rows begin anywhere
        emulators(program).launch(*rest)

    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    return emulators


def example(rows: int, vocab: int, dtype: torch.dtype = torch.bfloat16, scale: float = 4.0):
    """Logits, targets (first, last, the largest, any) and weights (with a zero)."""
    generator = torch.Generator().manual_seed(rows + vocab)
    logits = (scale * torch.randn(rows, vocab, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (rows,), generator=generator)
    targets[0] = vocab - 1
    targets[-1] = logits[-1].argmax()
    weights = 0.1 + torch.rand(rows, generator=generator)
    weights[rows // 2] = 0.0 if rows > 2 else 1.0
    return logits, targets, weights


def exact(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses by autograd in float64, and gradients with the pull written out."""
    x = logits.double().requires_grad_()
    losses = F.cross_entropy(x, targets, reduction="none")
    (grad,) = torch.autograd.grad((losses * weights).sum(), x)
    for row, weight, to in zip(x.detach(), weights, grad, strict=True):
        first = (row == row.max()).nonzero()[0]
        to[first] += PULL * row[first] * weight
    return losses.detach(), grad


def check(logits: Tensor, targets: Tensor, weights: Tensor) -> None:
    want, grad = exact(logits, targets, weights)
    kept = logits.clone()
    counts = weights != 0
    losses = operators.judge(kept, targets, weights, PULL, False)
    assert torch.equal(kept, logits)
    assert torch.equal(operators.judge(kept, targets, weights, PULL, True), losses)
    torch.testing.assert_close(losses.double()[counts], want[counts], rtol=1e-6, atol=2e-6)
    assert losses[~counts].count_nonzero() == kept[~counts].count_nonzero() == 0
    error = (kept.double() - grad).abs()
    # The rounding, and what fp32 leaves of 1 - 1; fp16 has a smallest number.
    allowed = 1.01 * HALF_UNIT[logits.dtype] * grad.abs() + 1e-6 * weights[:, None]
    allowed += 2.0**-25 if logits.dtype == torch.float16 else 0
    assert bool((error <= allowed).all()), (error - allowed).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "vocab"), [(5, 1), (9, 7), (1, 8), (9, 255), (3, 256), (8, 4099), (3, 65537)]
)
@pytest.mark.usefixtures("emulated")
def test_values_and_gradients(rows, vocab, dtype):
    check(*example(rows, vocab, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("emulated")
def test_extreme_logits(dtype):
    logits, targets, weights = example(9, 1003, dtype, scale=1e4)
    logits[0] = 0.0
    logits[1] = -1e4
    logits[2] = -1e4
    logits[2, 700] = logits[2, 301] = logits[2, 1002] = 1e4
    logits[3] = torch.where(torch.arange(1003) % 2 == 0, 1e4, -1e4)
    logits[5, :] = 3.0
    logits[5, 0] = 3.0
    logits[6, ::2] = -torch.inf
    targets[6] = 1
    check(logits, targets, weights)


@pytest.mark.usefixtures("emulated")
def test_the_pull_meets_the_first_of_equal_logits_alone():
    logits = torch.full((4, 4096), -8.0, dtype=torch.bfloat16)
    places = [[4090, 3, 17], [100, 101], [0, 4095], [2048, 2055, 512 * 8 - 1]]
    for row, where in zip(logits, places, strict=True):
        row[where] = 8.0
    targets, weights = torch.full((4,), 50), torch.ones(4)
    pulled, alone = logits.clone(), logits.clone()
    operators.judge(pulled, targets, weights, 1.0, True)
    operators.judge(alone, targets, weights, 0.0, True)
    for differs, where in zip(pulled != alone, places, strict=True):
        assert differs.nonzero().flatten().tolist() == [min(where)]


@pytest.mark.usefixtures("emulated")
def test_what_does_not_count_may_be_anything_and_what_is_wrong_shows():
    logits, targets, weights = example(6, 77)
    logits[3], weights[3] = torch.nan, 0.0
    logits[0, 5] = torch.nan
    logits[1, 5] = torch.inf
    targets[4] = 77
    losses = operators.judge(logits, targets, weights, PULL, True)
    assert losses.isnan().tolist() == [True, True, False, False, True, False]
    assert logits.isfinite().all(-1).tolist() == [False, False, True, True, True, True]
    assert logits[3].count_nonzero() == 0


def test_the_order_of_warps_changes_no_bit(emulated):
    outcomes = []
    for seed in (1, 2, 3):
        logits, targets, weights = example(5, 9001)
        emulated(operators.program(torch.bfloat16)).seed = seed
        outcomes.append((operators.judge(logits, targets, weights, PULL, True), logits))
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


def test_a_barrier_taken_out_shows(emulated):
    emulator = emulated(operators.program(torch.bfloat16))
    lines = waits("cross_entropy.cu")
    assert lines
    for line in lines:
        with emulator.without("cross_entropy.cu", line):
            logits, targets, weights = example(5, 9001)
            assert operators.judge(logits, targets, weights, PULL, True).isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_heads_loss_on_the_emulated_kernel(emulated, monkeypatch, dtype):
    """In chunks that end inside the tokens, with a mask, against the plain form in float64."""
    monkeypatch.setattr(plain, "choose", lambda *_: Choice("cuda", ""))
    monkeypatch.setattr("rwkvkit.model.loss._CHUNK_CPU", 5 * 99)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(99, 16, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(99, (2, 9), generator=generator)
    precise = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    for mask in (None, torch.arange(18).view(2, 9) % 3):
        got = head_loss(hidden, weight, targets, mask)
        want = lm_loss(precise[0] @ precise[1].mT, targets, mask)
        assert abs(got - want) < 1e-2 * want
        for ours, theirs in zip(
            torch.autograd.grad(got, (hidden, weight)),
            torch.autograd.grad(want, precise),
            strict=True,
        ):
            assert (ours - theirs).norm() < 1.5 * HALF_UNIT[dtype] * theirs.norm()


def test_the_operator_is_registered_rightly():
    logits, targets, weights = example(6, 40)
    for with_gradient in (True, False):
        given = (logits.clone(), targets, weights, PULL, with_gradient)
        torch.library.opcheck(operators.judge, given)


def test_the_operator_compiles_into_one_graph():
    logits, targets, weights = example(6, 40)
    want = logits.clone()
    losses = plain.judge(want, targets, weights, PULL, True)

    def run(logits: Tensor) -> tuple[Tensor, Tensor]:
        made = logits * 1.0
        return operators.judge(made, targets, weights, PULL, True), made

    got = torch.compile(run, fullgraph=True, backend="aot_eager")(logits)
    assert all(map(torch.equal, got, (losses, want)))


def test_the_choice_gives_its_reason(monkeypatch):
    gpu, cpu, bf16 = torch.device("cuda"), torch.device("cpu"), torch.bfloat16
    monkeypatch.setattr(plain, "kernel_obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert plain.choose("auto", gpu, bf16).reason.startswith("cross entropy cuda: one kernel")
    assert plain.choose("precise", gpu, torch.float16).impl == "cuda"
    refused = {
        "the device is cpu": ("auto", cpu, bf16),
        "wkv chunked does without kernels": ("chunked", gpu, bf16),
        "not float32": ("cuda", gpu, torch.float32),
    }
    for reason, given in refused.items():
        choice = plain.choose(*given)
        assert choice.impl == "plain"
        assert reason in choice.reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "begins with sm_80" in plain.choose("auto", gpu, bf16).reason
    assert plain.choose("auto", gpu, torch.float16).impl == "cuda"
    monkeypatch.setattr(plain, "kernel_obstacle", lambda device: "no NVRTC")
    assert "no NVRTC" in plain.choose("auto", gpu, bf16).reason
