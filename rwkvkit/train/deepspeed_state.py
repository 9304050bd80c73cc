"""Masters, moments and weights under DeepSpeed, read and set by parameter, whatever the stage."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rwkvkit.train.group import Group


class ShardedState:
    """What DeepSpeed's optimizer keeps of each parameter, cut up among the processes.

    Every process calls its methods for the same parameters in the same order.

    Args:
        optimizer: DeepSpeed's, around torch's AdamW.
        group: the processes of the run.
        whole: whether each process holds whole weights: in stages 1 and 2.
    """

    def __init__(self, optimizer: Any, group: Group, *, whole: bool) -> None:
        self._optimizer, self._group, self._are_whole = optimizer, group, whole

    def get(self, param: nn.Parameter, moment: str | None = None) -> Tensor:
        """Return a whole master or moment, float32, gathered from the processes."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if moment is None:
            whole = safe_get_full_fp32_param(param)
        else:
            whole = safe_get_full_optimizer_state(param, moment)
        return whole.view(_shape(param))

    def set(self, param: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        """Set a whole master, and the weight that is its rounded copy, or a moment."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if not self._are_whole:
            part = _part_of(param, value, self._group.rank)
            if moment is None:
                safe_set_local_fp32_param(param, part)
            else:
                safe_set_local_optimizer_state(param, part, moment)
        elif moment is None:
            safe_set_full_fp32_param(param, value.to(param.device))
        else:
            safe_set_full_optimizer_state(param, value.to(param.device), moment)
        if moment is None:
            with self._gathered([param]), torch.no_grad():
                param.copy_(value)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a model's weights by name in rank 0, on the CPU, and nothing in the others."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            with self._gathered([tensor] if hasattr(tensor, "ds_id") else []):
                if self._group.rank == 0:
                    tensors[name] = tensor.detach().cpu().clone()
        return tensors

    def link_moments(self) -> None:
        """Tell stages 1 and 2 where a parameter's moments are.

        DeepSpeed does so after the update of the first parameter group, when the other groups have
        none yet.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        own = self._optimizer
        flat = getattr(own, "single_partition_of_fp32_groups", [])
        for params, partition in zip(getattr(own, "bit16_groups", []), flat, strict=True):
            if own.optimizer.state[partition]:
                lazy_init_hp_params_optimizer_state(params, partition, own.optimizer.state)

    def steps(self) -> Tensor | None:
        """Return the updates done, the same in every process; None before the first."""
        own = max((float(state["step"]) for state in self._states()), default=0.0)
        done = max(self._group.gather(own))
        return torch.tensor(done) if done else None

    def set_steps(self, done: float) -> None:
        """Set the updates done in the states of this process."""
        for state in self._states():
            is_tensor = isinstance(state["step"], Tensor)
            state["step"] = torch.full_like(state["step"], done) if is_tensor else int(done)

    def _states(self) -> list[dict[str, Any]]:
        """Return AdamW's own states, of the flat tensors this process holds."""
        inner = getattr(self._optimizer, "optimizer", self._optimizer)
        return [state for state in inner.state.values() if "step" in state]

    @contextlib.contextmanager
    def _gathered(self, params: list[nn.Parameter]) -> Iterator[None]:
        """Gather parameters that stage 3 has cut up; what rank 0 makes of them stays."""
        if self._are_whole:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(params, modifier_rank=0):
            yield


def rounded(
    params: dict[str, nn.Parameter], dtype: torch.dtype, *, copy: bool
) -> dict[str, Tensor]:
    """Return the weights that ``dtype`` cannot hold exactly; as they are unless ``copy``."""
    return {
        name: param.detach().to("cpu", copy=copy)
        for name, param in params.items()
        if not torch.equal(param, param.to(dtype).to(param.dtype))
    }


def _shape(param: nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(param, "ds_shape", param.shape)
    return shape


def _part_of(param: Any, value: Tensor, rank: int) -> Tensor:
    """Return the part of a whole tensor that stage 3 keeps in a process, zeros beyond its end."""
    size = param.ds_tensor.numel()
    part = value.flatten()[rank * size : (rank + 1) * size].to(torch.float32)
    return nn.functional.pad(part, (0, size - part.numel())).to(param.ds_tensor.device)
