"""Start a larger model from the weights of a smaller one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig, config_from_state_dict
from rwkvkit.model.init import init_weights


def grow(
    small: Mapping[str, Tensor],
    config: ModelConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    where: str | None = None,
) -> dict[str, Tensor]:
    """Fit the tensors of a checkpoint to the shapes of another, usually larger model.

    A tensor with as many elements is reshaped; another one is interpolated linearly, axis by axis.
    What the checkpoint does not have, such as further layers, gets fresh initial values.

    Args:
        small: the checkpoint's tensors by name.
        config: the shape of the new model, of the same architecture.
        seed: of the fresh values, see :func:`rwkvkit.model.init.init_weights`.
        progress: as there.
        where: the checkpoint's file, for messages.

    Returns:
        float32 tensors by name.

    Raises:
        DataError: ``small`` is no RWKV checkpoint.
        RecipeError: it has another architecture.
    """
    check_growth(small, config, where)
    weights = init_weights(config, seed, progress)
    for name, fresh in weights.items():
        if name in small:
            weights[name] = _fitted(small[name].float(), tuple(fresh.shape))
    return weights


def check_growth(
    small: Mapping[str, Tensor], config: ModelConfig, where: str | None = None
) -> None:
    """Check that a checkpoint can be grown into a model of this shape.

    Args:
        small: the checkpoint's tensors by name.
        config: the shape of the new model.
        where: the checkpoint's file, for messages.

    Raises:
        DataError: ``small`` is no RWKV checkpoint.
        RecipeError: it has another architecture.
    """
    arch = config_from_state_dict(small, where).arch
    if arch != config.arch:
        raise RecipeError(
            f"cannot grow an {arch} checkpoint into an {config.arch} model",
            where="model.arch",
            hint=f"set arch to {arch}, or start from a checkpoint of {config.arch}",
        )


def _fitted(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.numel() == torch.Size(shape).numel():
        return tensor.reshape(shape).clone()
    for axis, size in enumerate(shape):
        tensor = _stretched(tensor, axis, size)
    return tensor


def _stretched(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Interpolate along one axis: the new position i reads the old position i · old / size."""
    old = tensor.shape[axis]
    if old == size:
        return tensor
    position = torch.arange(size, dtype=torch.float64) * old / size
    low = position.long()
    high = (low + 1).clamp(max=old - 1)
    along = [1] * tensor.dim()
    along[axis] = size
    fraction = (position - low).to(tensor.dtype).view(along)
    return torch.lerp(tensor.index_select(axis, low), tensor.index_select(axis, high), fraction)
