"""The engine on DeepSpeed: ZeRO stages 1 to 3, offload, bf16, fp16 and fp32.

With ``deepspeed_state`` the only file that uses DeepSpeed. It has run over gloo
on a CPU; it has not run on a GPU yet.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rwkvkit.errors import DataError, DivergedError, SetupError
from rwkvkit.model.checkpoint import read_checkpoint
from rwkvkit.train.backend import Backend
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.deepspeed_state import ShardedState, rounded
from rwkvkit.train.engine import StepResult
from rwkvkit.train.group import COLLECTIVE_TIMEOUT, Group
from rwkvkit.train.optimizer import make_adamw, optimizer_groups, set_rates
from rwkvkit.train.passes import loss_count, losses
from rwkvkit.train.portion import MODEL_FILE, Portion
from rwkvkit.train.state import (
    ParameterState,
    TrainState,
    random_state,
    read_state,
    set_random_state,
    write_state,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WARM_UPS = 40  # halvings of the fp16 loss scale until a first step counts


class DeepSpeedEngine:
    """DeepSpeed around a model: AdamW over float32 masters that the processes share out.

    Its checkpoints are those of ``TorchEngine``: tensors by parameter, gathered one at a time and
    written by the processes in turn, so another engine, stage or number of processes reads them.

    Args:
        model: with float32 weights on its device; for stage 3 on the CPU, best in a mapped file
            and in the file's dtype (``build_model`` with ``copy=False``): a process then takes
            memory for its own part and one weight at a time.
        config: the recipe's settings.
        backend: the stage and DeepSpeed's settings.
        dtype: of the forward and backward pass.
        device: where to train.
        portion: what of the model is saved.
        group: the processes of the run.

    Raises:
        SetupError: DeepSpeed is not installed, or cannot start.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        backend: Backend,
        dtype: torch.dtype,
        device: torch.device,
        portion: Portion,
        group: Group,
    ) -> None:
        self.model = model
        self._portion, self._group, self._device = portion, group, device
        self._micro_bsz, sharded = config.micro_bsz, backend.zero == 3
        self._truncate = config.sampling.truncate
        self._deepspeed = _import(device, group)
        groups = optimizer_groups(
            model, weight_decay=config.weight_decay, lr_scale=config.tuning.lr_scale
        )
        self._params: dict[str, nn.Parameter] = {}
        for each in groups:
            self._params |= dict(zip(each["names"], each["params"], strict=True))
        self._model_dtype = dtype
        masters = rounded(self._params, dtype, copy=not sharded)
        settings = dict(backend.settings)
        with _quietly():
            if sharded:
                self._deepspeed.zero.Init(
                    module=_OneByOne(model, dtype), config_dict_or_path=settings, dtype=dtype
                )
            else:
                model.to(dtype)
            # On the host too torch's own, whose fused form needs no compiler: DeepSpeed would
            # compile an Adam at every first start.
            fused = config.offload != "none"
            self._engine, self._optimizer, _, _ = self._deepspeed.initialize(
                model=model,
                optimizer=make_adamw(groups, self._params.values(), config, fused=fused),
                config=settings,
                dist_init_required=False,
            )
        self._state = ShardedState(self._optimizer, group, whole=not sharded)
        for name, master in masters.items():
            self._state.set(self._params[name], master)

    def step(self, batch: Batch, *, lr: float, weight_decay: float) -> StepResult:
        """Take one optimizer step; see ``Engine.step``."""
        counted = max(1.0, self._group.sum(batch.counted))
        set_rates(self._optimizer, lr=lr, weight_decay=weight_decay)
        loss = torch.zeros((), device=self._device)
        passes = batch.split(len(batch.x) // self._micro_bsz)
        for number, micro in enumerate(passes, 1):
            share = micro.counted / counted
            micro = micro.to(self._device)
            left = loss_count(micro, self._truncate) + len(passes) - number
            for part in losses(self._engine, micro, self._truncate):
                part = part * share
                left -= 1
                self._engine.set_gradient_accumulation_boundary(left == 0)
                # DeepSpeed takes the mean over the processes; the shares add up to the whole.
                self._engine.backward(part * self._group.world, scale_wrt_gas=False)
                loss += part.detach()
        with _quietly():
            self._engine.step()
        norm = self._engine.get_global_grad_norm()
        applied = self._engine.was_step_applied()
        return StepResult(
            self._group.sum(loss.item()),
            float("nan") if norm is None else float(norm),
            skipped=not applied,
        )

    def save(self, folder: Path) -> None:
        """Write the whole training state; see ``Engine.save``."""
        random = self._group.gather(random_state(self._device))
        parameters: dict[str, ParameterState] = {}
        step = self._state.steps()
        self._state.link_moments()
        broken = None
        for number, (name, param) in enumerate(self._params.items()):
            kept = {"master": self._state.get(param)}
            if step is not None:
                kept |= {moment: self._state.get(param, moment) for moment in _MOMENTS}
                kept["step"] = step
            if not kept["master"].isfinite().all():
                broken = broken or name
            if number % self._group.world == self._group.rank:
                parameters[name] = {key: tensor.cpu() for key, tensor in kept.items()}
        if broken:
            raise DivergedError(f"values in {broken} that are not finite")
        weights = self._state.weights(self.model)
        scale = float(self._optimizer.loss_scale) if self._scales else None
        if self._group.rank == 0:
            self._portion.save(weights, folder)
            write_state(TrainState(parameters, random, scale), folder)
        else:
            write_state(TrainState(parameters), folder, self._group.rank)

    def load(self, folder: Path) -> None:
        """Read the whole training state, of any engine; see ``Engine.load``."""
        state = read_state(folder)
        weights = read_checkpoint(folder / MODEL_FILE) if (folder / MODEL_FILE).exists() else {}
        if missing := [n for n in self._params if n not in state.parameters]:
            raise DataError(f"holds no state of {missing[0]}", where=str(folder))
        if any("exp_avg" in kept for kept in state.parameters.values()):
            self._make_moments()
        for name, param in self._params.items():
            kept = state.parameters[name]
            self._state.set(param, kept["master"] if "master" in kept else weights[name])
            for moment in _MOMENTS:
                if moment in kept:
                    self._state.set(param, kept[moment], moment)
        steps = [kept["step"] for kept in state.parameters.values() if "step" in kept]
        if steps:
            self._state.set_steps(float(max(steps)))
        if self._scales and state.loss_scale is not None:
            self._optimizer.loss_scaler.cur_scale = state.loss_scale
        if self._group.rank < len(state.random):
            set_random_state(state.random[self._group.rank], self._device)

    def write_model(self, path: Path) -> None:
        """Write the run's result; see ``Engine.write_model``."""
        weights = self._state.weights(self.model)
        if self._group.rank == 0:
            self._portion.write(weights, path)

    @property
    def _scales(self) -> bool:
        return self._model_dtype == torch.float16

    def _make_moments(self) -> None:
        """Have DeepSpeed make the moments, which are there after a first update: one without rate.

        Whatever it changes is set afterwards.
        """
        idx = torch.zeros((self._micro_bsz, 2), dtype=torch.int64)
        for _ in range(_WARM_UPS):
            if self.step(Batch(idx, idx), lr=0.0, weight_decay=0.0).skipped is False:
                self._state.link_moments()
                return
        raise SetupError("DeepSpeed made no moments", where="train.engine", hint="report this")


def _import(device: torch.device, group: Group) -> Any:
    """Import DeepSpeed without its talk, and see that it finds a process group."""
    try:
        with _quietly():
            import deepspeed
    except ImportError as error:
        raise SetupError(
            f"DeepSpeed cannot be imported: {error}",
            where="train.engine",
            hint="pip install deepspeed, or set train.engine to torch",
        ) from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It calls collectives by names that newer versions of torch are about to drop.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    # A shared-memory operator that it would compile at its start, for inference on CPUs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.HashStore(),
            rank=0,
            world_size=1,
            timeout=COLLECTIVE_TIMEOUT,
        )
    os.environ.setdefault("LOCAL_RANK", str(group.local_rank))  # it insists
    with _quietly():
        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=COLLECTIVE_TIMEOUT)
    return deepspeed


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep DeepSpeed's notes off the terminal; its errors come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _OneByOne(nn.Module):
    """A model whose weights become of ``dtype`` only when each is asked for.

    ZeRO-3 keeps its part of one before it asks for the next: weights in a mapped file are never
    all in the memory of a process.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._given = (model, dtype)  # in a tuple: not a module of its own

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Go through the model's parameters."""
        model, dtype = self._given
        for param in model.parameters(recurse):
            if param.is_floating_point():
                # A copy, since DeepSpeed writes what rank 0 has over it.
                param.data = param.data.to(dtype, copy=True).contiguous()
            yield param
