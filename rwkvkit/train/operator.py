"""Which WKV operator a run uses, and why."""

from rwkvkit.errors import RecipeError, UsageError
from rwkvkit.model.config import ModelConfig
from rwkvkit.ops import rwkv6, rwkv7
from rwkvkit.ops.inputs import Choice, Impl, choose
from rwkvkit.train.device import Placement

# Shared memory that the chunked kernels need, by architecture and head size.
_KERNELS = {
    "x052": rwkv6.KERNEL_SHARED_BYTES,
    "x060": rwkv6.KERNEL_SHARED_BYTES,
    "x070": rwkv7.KERNEL_SHARED_BYTES,
}


def choose_wkv(setting: Impl, placement: Placement, model: ModelConfig, ctx_len: int) -> Choice:
    """Resolve ``train.wkv``.

    Args:
        setting: of the recipe.
        placement: where and in which precision the model trains.
        model: its shape.
        ctx_len: tokens a sample.

    Raises:
        RecipeError: the recipe demands an operator that cannot run there.
    """
    shared_bytes = _KERNELS[model.arch].get(model.head_size)
    try:
        return choose(setting, placement.device, placement.dtype, ctx_len, shared_bytes)
    except UsageError as error:
        raise RecipeError(
            error.what, where="train.wkv", hint="leave train.wkv out: it takes what can run"
        ) from error
