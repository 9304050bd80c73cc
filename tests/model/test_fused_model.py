"""An x070 whose elementwise work is that of the kernels' operators, against the plain one."""

from typing import Any

import pytest
import torch
from rwkv_cases import small_model, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rwkvkit.errors import UsageError
from rwkvkit.model.rwkv import RWKV

SHAPE: dict[str, Any] = {"n_embd": 128, "head_size": 64, "dtype": torch.float32}
RESETS = torch.zeros(2, 9, dtype=torch.bool)
RESETS[0, 0] = RESETS[0, 4] = RESETS[1, 8] = True

FORWARD = {"shift_mix", "relu_squared", "prepare_keys", "residual_value", "norm_gate"}


class Names(TorchDispatchMode):
    """Notes which of rwkvkit's operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func.name().partition("::")
        if namespace == "rwkvkit":
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


def both(**settings: Any) -> tuple[RWKV, RWKV]:
    plain, fused = (small_model("x070", **SHAPE, **settings) for _ in range(2))
    fused.fuse_elementwise()
    return plain, fused


def outcome(model: RWKV, *, state: bool, resets: bool) -> list[Tensor]:
    before = model.zero_state(2) if state else None
    result = model.loss(
        tokens(2, 9), tokens(2, 9, seed=4), state=before, resets=RESETS if resets else None
    )
    loss, *after = (result[0], *result[1]) if isinstance(result, tuple) else (result,)
    leaves = [x for x in model.parameters() if x.requires_grad]
    return [loss.detach(), *(x.detach() for x in after), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_the_same_values_and_gradients(state: bool, resets: bool) -> None:
    plain, fused = both(time_state=state)
    with Names() as names:
        found = outcome(fused, state=state, resets=resets)
    assert names.seen >= FORWARD | {f"{name}_backward" for name in FORWARD}
    for x, y in zip(found, outcome(plain, state=state, resets=resets), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("grad_cp", [True, "selective"])
def test_checkpointing_changes_no_gradient(grad_cp: bool | str) -> None:
    models = (both(grad_cp=setting)[1] for setting in (False, grad_cp))
    found, want = (outcome(model, state=False, resets=False) for model in models)
    assert all(map(torch.equal, found, want))


def test_frozen_parameters_get_no_gradient() -> None:
    plain, fused = both()
    for model in (plain, fused):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(("receptance.weight", "blocks.0.att.x_r")))
    found = outcome(fused, state=False, resets=False)
    for x, y in zip(found, outcome(plain, state=False, resets=False), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def test_a_shape_without_kernels_is_refused() -> None:
    with pytest.raises(UsageError, match="head sizes 64 and 128, not 16") as caught:
        small_model("x070").fuse_elementwise()
    assert "PyTorch does it" in caught.value.hint


@pytest.mark.filterwarnings(
    "ignore:.*grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:`torch.jit:DeprecationWarning",
)
def test_whole_blocks_compile() -> None:
    _, fused = both()
    want = outcome(fused, state=False, resets=True)
    torch.compiler.reset()
    fused.compile_blocks(backend="aot_eager", fullgraph=True)
    for x, y in zip(outcome(fused, state=False, resets=True), want, strict=True):
        torch.testing.assert_close(x, y)
