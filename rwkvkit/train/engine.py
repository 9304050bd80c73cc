"""What the training loop asks of an engine, and the engine for one process."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from rwkvkit.errors import DivergedError
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.group import Group, Solo
from rwkvkit.train.optimizer import make_adamw, optimizer_groups, set_rates
from rwkvkit.train.passes import losses
from rwkvkit.train.portion import Portion, WholeModel
from rwkvkit.train.recorder import Pass
from rwkvkit.train.state import (
    ParameterState,
    TrainState,
    random_state,
    read_state,
    set_random_state,
    write_state,
)


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured.

    Attributes:
        loss: mean cross entropy over the global batch, before the update.
        grad_norm: norm of the whole gradient before clipping.
        skipped: whether loss or gradient was not finite: weights and moments are as before.
    """

    loss: float
    grad_norm: float
    skipped: bool = False


class Engine(Protocol):
    """Runs optimizer steps and keeps their state; the loop knows nothing else of the hardware.

    Attributes:
        model: computes with the present weights; every process calls it at once.
    """

    model: nn.Module

    def step(self, batch: Batch, *, lr: float, weight_decay: float) -> StepResult:
        """Take one optimizer step.

        Args:
            batch: this process's samples of the step.
            lr: learning rate before a group's ``lr_scale``.
            weight_decay: weight decay of the groups that decay.
        """

    def save(self, folder: Path) -> None:
        """Write what is trained, masters, moments and random states; all processes at once.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
            SetupError: a file cannot be written.
        """

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote, so that the next step is the one an unbroken run would take."""

    def write_model(self, path: Path) -> None:
        """Write the run's result: weights that the PyPI package ``rwkv`` loads, or an adapter.

        Every process calls it; one file is written.
        """


class TorchEngine:
    """One device a process: AdamW over float32 masters.

    In fp32 the masters are the parameters themselves. In bf16 the model holds rounded copies,
    renewed after each step, and gradients of all passes add up in float32. Several processes add
    their gradients up once a step, and then each does the same update.

    Args:
        model: with float32 weights, on its device; becomes a model of ``dtype``.
        config: the recipe's settings.
        dtype: of the forward and backward pass.
        portion: what of the model is saved; the whole of it unless given.
        group: the processes of the run.
        recording: makes of a pass one that records itself, see ``RecordedPasses``; None: every pass
            runs as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        dtype: torch.dtype = torch.float32,
        portion: Portion | None = None,
        group: Group | None = None,
        recording: Callable[[Pass], Callable[[Batch, float], None]] | None = None,
    ) -> None:
        self.model = model
        self._portion = portion or WholeModel()
        self._group = group or Solo()
        self._micro_bsz = config.micro_bsz
        self._truncate = config.sampling.truncate
        self._grad_clip = config.grad_clip
        self._device = next(model.parameters()).device
        self._loss = torch.zeros((), device=self._device)
        # A recording adds to the same gradients in every step.
        self._gradients_stay = recording is not None
        self._run = self._run_once if recording is None else recording(self._pass)
        groups = optimizer_groups(
            model, weight_decay=config.weight_decay, lr_scale=config.tuning.lr_scale
        )
        self._names = [name for group in groups for name in group["names"]]
        self._params = [param for group in groups for param in group["params"]]
        self._masters_are_params = dtype == torch.float32
        self._masters = self._params
        if not self._masters_are_params:
            self._masters = [param.detach().clone().requires_grad_() for param in self._params]
            model.to(dtype)
        self._optimizer = make_adamw(groups, self._masters, config, fused=True)

    def step(self, batch: Batch, *, lr: float, weight_decay: float) -> StepResult:
        """Take one optimizer step; see ``Engine.step``."""
        # Not after the step: freed next to the activations, gradients would let the C library give
        # the memory of both back to the system, and the next step would take 6 % longer on a CPU.
        self._optimizer.zero_grad(set_to_none=not self._gradients_stay)
        counted = max(1.0, self._group.sum(batch.counted))
        self._loss.zero_()
        for micro in batch.split(len(batch.x) // self._micro_bsz):
            # A pass weighs as much as it has targets that count.
            self._run(micro, micro.counted / counted)
        self._group.add([master.grad for master in self._masters if master.grad is not None])
        grad_norm = nn.utils.clip_grad_norm_(self._masters, self._grad_clip)
        result = StepResult(self._group.sum(self._loss.item()), grad_norm.item())
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            return replace(result, skipped=True)
        set_rates(self._optimizer, lr=lr, weight_decay=weight_decay)
        self._optimizer.step()
        self._publish_masters()
        return result

    def save(self, folder: Path) -> None:
        """Write the whole training state; see ``Engine.save``."""
        for name, master in zip(self._names, self._masters, strict=True):
            if not master.isfinite().all():
                raise DivergedError(f"values in {name} that are not finite")
        random = self._group.gather(random_state(self._device))
        if self._group.rank > 0:
            return  # weights, masters and moments are the same everywhere
        self._portion.save(self.model.state_dict(), folder)
        whole = isinstance(self._portion, WholeModel)
        parameters: dict[str, ParameterState] = {}
        for name, master in zip(self._names, self._masters, strict=True):
            kept = dict(self._optimizer.state.get(master, {}))
            if not (self._masters_are_params and whole):
                kept["master"] = master.detach()
            parameters[name] = kept
        write_state(TrainState(parameters, random), folder)

    def write_model(self, path: Path) -> None:
        """Write the run's result; see ``Engine.write_model``."""
        if self._group.rank == 0:
            self._portion.write(self.model.state_dict(), path)

    def load(self, folder: Path) -> None:
        """Read the whole training state; see ``Engine.load``."""
        self._portion.load(self.model, folder)
        state = read_state(folder)
        for name, master in zip(self._names, self._masters, strict=True):
            kept = dict(state.parameters.get(name, {}))
            if not self._masters_are_params:
                master.data.copy_(kept["master"])
            kept.pop("master", None)
            self._optimizer.state[master] = {
                key: tensor.to(master.device, copy=True) for key, tensor in kept.items()
            }
            if not kept:
                del self._optimizer.state[master]
        if self._group.rank < len(state.random):
            set_random_state(state.random[self._group.rank], self._device)

    def _run_once(self, micro: Batch, share: float) -> None:
        self._pass(micro.to(self._device), share)

    def _pass(self, micro: Batch, share: Tensor | float) -> None:
        """Run forward and backward; add to the loss of the step and to the masters' gradients."""
        try:
            for part in losses(self.model, micro, self._truncate):
                part = part * share
                part.backward()
                self._loss += part.detach()
                self._collect_gradients()
        except RuntimeError:  # half of a backward pass that could not be recorded
            if not self._masters_are_params:
                self.model.zero_grad()
            raise

    def _collect_gradients(self) -> None:
        if self._masters_are_params:
            return
        for master, param in zip(self._masters, self._params, strict=True):
            if param.grad is not None:
                gradient = param.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                param.grad = None

    @torch.no_grad()
    def _publish_masters(self) -> None:
        if not self._masters_are_params:
            torch._foreach_copy_(self._params, self._masters)
