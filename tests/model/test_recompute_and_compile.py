"""Checkpointing and compiling change what is kept and how it runs, never a gradient."""

import pytest
import torch
from rwkv_cases import ARCHS, small_model, tokens
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from rwkvkit.model import x070
from rwkvkit.model.rwkv import RWKV

calls: list[str] = []

# torch's tracer warns of what it does itself.
tracing = pytest.mark.filterwarnings(
    "ignore:.*grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:`torch.jit:DeprecationWarning",
)


@torch.library.custom_op("rwkvkit::wkv_counted", mutates_args=())
def counted(v: Tensor) -> Tensor:
    calls.append("forward")
    return v.cumsum(1)


@counted.register_fake
def _(v: Tensor) -> Tensor:
    return torch.empty_like(v)


def _backward(context, grad: Tensor) -> Tensor:
    return grad.flip(1).cumsum(1).flip(1)


counted.register_autograd(_backward)


@pytest.fixture
def an_operator_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands where a kernel would: one operator, with a gradient of its own."""

    def wkv(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, *_, **__):
        return r * k * counted(v + log_w * a * b), r.new_zeros(1)

    monkeypatch.setattr(x070, "wkv7", wkv)
    calls.clear()


def gradients(model: RWKV, length: int = 9) -> tuple[Tensor, ...]:
    loss = model.loss(tokens(2, length), tokens(2, length, seed=4))
    return torch.autograd.grad(loss, model.parameters())


@pytest.mark.usefixtures("an_operator_that_counts")
@pytest.mark.parametrize(("grad_cp", "runs"), [(False, 1), (True, 2), ("selective", 1)])
def test_selective_checkpointing_runs_the_operator_once(grad_cp: bool | str, runs: int) -> None:
    want = gradients(small_model("x070", n_layer=3))
    calls.clear()
    got = gradients(small_model("x070", n_layer=3, grad_cp=grad_cp))
    assert len(calls) == 3 * runs
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(("grad_cp", "runs"), [(True, 2), ("selective", 1)])
def test_the_kernels_operator_is_kept(grad_cp: bool | str, runs: int) -> None:
    class Counter(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += func.name() == "rwkvkit::wkv7_forward"
            return func(*args, **(kwargs or {}))

    model = small_model("x070", dtype=torch.float32, impl="precise", grad_cp=grad_cp)
    with Counter() as counter:
        got = gradients(model)
    assert counter.calls == 2 * runs
    plain = small_model("x070", dtype=torch.float32, impl="precise")
    assert all(map(torch.equal, got, gradients(plain)))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("grad_cp", [True, "selective"])
def test_checkpointing_changes_no_gradient(arch: str, grad_cp: bool | str) -> None:
    dropout = 0.0 if arch == "x070" else 0.3
    results = []
    for setting in (False, grad_cp):
        torch.manual_seed(7)
        model = small_model(arch, dtype=torch.float32, grad_cp=setting, dropout=dropout)
        results.append(gradients(model.train()))
    assert all(map(torch.equal, *results))


def saved_bytes(model: RWKV, length: int) -> int:
    """Bytes that the blocks keep for the backward pass, the weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model.loss(tokens(2, length), tokens(2, length, seed=4))
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("arch", ARCHS)
def test_checkpointing_keeps_a_blocks_input_alone(arch: str) -> None:
    shape = {"n_embd": 64, "head_size": 32, "dtype": torch.float32}
    small, large = (
        saved_bytes(small_model(arch, grad_cp=True, n_layer=n, **shape), 64) for n in (2, 6)
    )
    assert large - small == 4 * 2 * 64 * 64 * 4  # four blocks, each x [2, 64, 64] in float32


@tracing
@pytest.mark.parametrize("arch", ARCHS)
def test_blocks_compile_whole_into_two_graphs(arch: str) -> None:
    model = small_model(arch, dtype=torch.float32, n_layer=3)
    names = list(model.state_dict())
    want = gradients(model, 2)
    logits = model(tokens(2, 2)).detach()
    counters.clear()
    torch.compiler.reset()
    model.compile_blocks(backend="aot_eager", fullgraph=True)
    got = gradients(model, 2)
    assert counters["stats"]["unique_graphs"] == 2
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():  # of another length: not compiled
        torch.testing.assert_close(model(tokens(2, 2)), logits)
        model(tokens(1, 5))
    assert counters["stats"]["unique_graphs"] == 2
    assert list(model.state_dict()) == names


def test_torchs_own_backend_is_kept_from_a_reduction_that_it_gets_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda block, **settings: seen.append(settings) or block)
    model = small_model("x070", dtype=torch.float32, n_layer=1)
    model.compile_blocks()
    model.compile_blocks(backend="eager")
    options = {"triton.mix_order_reduction": False}
    assert seen == [{"dynamic": False, "options": options}, {"dynamic": False, "backend": "eager"}]


@tracing
@pytest.mark.parametrize("arch", ARCHS)
def test_many_widths_share_their_graphs(arch: str) -> None:
    model = small_model(arch, dtype=torch.float32, impl="precise")
    widths = (16, 32, 48, 80)
    want = [model.loss(tokens(2, t), tokens(2, t, seed=4)) for t in widths]
    counters.clear()
    torch.compiler.reset()
    model.compile_blocks(backend="eager", dynamic=True)
    found, graphs = [], []
    for t in widths:
        found.append(model.loss(tokens(2, t), tokens(2, t, seed=4)))
        graphs.append(counters["stats"]["unique_graphs"])
    torch.testing.assert_close(found, want)
    assert graphs[1] == graphs[-1] <= 5


@pytest.mark.usefixtures("an_operator_that_counts")
@tracing
@pytest.mark.filterwarnings("ignore:.*context_fn is passed to torch.utils.checkpoint")
def test_a_compiled_block_keeps_the_operators_output_too() -> None:
    model = small_model("x070", dtype=torch.float32, n_layer=3, grad_cp="selective")
    want = gradients(model)
    torch.compiler.reset()
    model.compile_blocks(backend="aot_eager_decomp_partition", fullgraph=True)
    calls.clear()
    got = gradients(model)
    assert len(calls) == 3
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
