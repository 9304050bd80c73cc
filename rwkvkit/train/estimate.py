"""What a run will need of memory, and how fast it may be, before its first step.

Activations are counted by running the model's code without data (``footprint``); the rest is
arithmetic. M = micro_bsz x ctx_len tokens of a pass, C n_embd, L layers, V vocabulary.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.describe import n_parameters
from rwkvkit.model.flops import train_flops
from rwkvkit.model.loss import traffic as loss_traffic
from rwkvkit.model.loss import workspace as loss_workspace
from rwkvkit.model.rwkv import GradCp
from rwkvkit.ops.inputs import Impl
from rwkvkit.train.compile import EAGER_COMPILED, FUSED_COMPILED
from rwkvkit.train.device import Card
from rwkvkit.train.footprint import Footprint, block_footprint

Offload = Literal["none", "optimizer", "all"]

# Of a GPU: what a process holds before torch allocates, and what blocks of unequal size waste.
_CONTEXT, _WASTE = 0.6e9, 0.05

# The step model. Ceilings as shares of the data sheet, from what an H200 does (790 of 989 TFLOP/s,
# 4.3 of 4.8 TB/s); products of narrow models fall short of that by C / (C + 600).
_PRODUCT_SHARE, _NARROW, _COPY_SHARE = 0.8, 600, 0.9
_COMPILED = EAGER_COMPILED[1] / EAGER_COMPILED[0]  # of the eager traffic, as for x070
_COMPILED_BESIDE_KERNELS = FUSED_COMPILED[1] / FUSED_COMPILED[0]
_KERNEL_BYTES = 96  # an element forward and backward: what a WKV kernel's time amounts to
_OPTIMIZER_BYTES = 40  # a trained parameter: masters, moments, gradients, clipping, publishing
_LAUNCH_SECONDS = 5e-6


@dataclass(frozen=True)
class Setup:
    """What decides the memory and speed of a pass on one device.

    Attributes:
        model: its shape.
        micro_bsz: samples a pass.
        ctx_len: tokens a sample.
        dtype: of weights and activations.
        grad_cp: what of the activations is computed again.
        impl: the WKV operator, ``auto`` resolved.
        fused: whether x070's elementwise work is that of hand-written kernels.
        on_gpu: whether the device is a GPU.
        accumulate: passes an optimizer step.
        carried: segments of ctx_len through which a loss goes back, the state carried from each to
            the next (order infctx); 0: samples are one pass.
        trained: parameters that train; None: all.
        trained_names: of what trains, or has an adapter beside it, those of a block without its
            number; None: all.
        weight_bytes: of what the passes read, where some is quantized; None: all is of ``dtype``.
        zero: ZeRO stage.
        world: processes, one a device.
        offload: what of the state lies in the machine's memory.
        bucket: elements of the buffers through which DeepSpeed reduces gradients, if it does.
    """

    model: ModelConfig
    micro_bsz: int
    ctx_len: int
    dtype: torch.dtype
    grad_cp: GradCp = False
    impl: Impl = "chunked"
    fused: bool = False
    on_gpu: bool = True
    accumulate: int = 1
    carried: int = 0
    trained: int | None = None
    trained_names: frozenset[str] | None = None
    weight_bytes: float | None = None
    zero: int = 0
    world: int = 1
    offload: Offload = "none"
    bucket: float = 0

    @property
    def tokens(self) -> int:
        """Tokens of a pass, M."""
        return self.micro_bsz * self.ctx_len

    @property
    def samples(self) -> int:
        """Samples of an optimizer step on a device."""
        return self.micro_bsz * self.accumulate

    @property
    def fused_loss(self) -> bool:
        """Whether a kernel judges the logits, where it can run at all."""
        kernels = self.impl not in ("chunked", "naive")
        return self.on_gpu and self.dtype.itemsize == 2 and kernels

    @property
    def footprint(self) -> Footprint:
        """That of one block."""
        return block_footprint(
            self.model,
            self.dtype,
            self.impl,
            self.micro_bsz,
            self.ctx_len,
            fused=self.fused,
            trained_names=self.trained_names,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: what the passes read.
        masters: float32 copies of weights that are not.
        moments: Adam's two.
        gradients: at their most.
        activations: at their most, with what the loss or a block's backward pass needs.
        reserve: of a GPU: the process's own, and what the allocator wastes.
        total: the most at once. Gradients grow while activations shrink, so it is no plain sum.
    """

    weights: float
    masters: float
    moments: float
    gradients: float
    activations: float
    reserve: float
    total: float

    def __str__(self) -> str:
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "total"}
        listed = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
        return f"{_size(self.total)} at most ({listed})"


def estimate_memory(setup: Setup, *, recorded: bool = False) -> Memory:
    """Estimate what a training step holds at its most on each device.

    Args:
        setup: the step.
        recorded: whether passes are CUDA graphs: their gradients stay from step to step.
    """
    total = n_parameters(setup.model)
    trained = total if setup.trained is None else setup.trained
    width = setup.dtype.itemsize
    low = width < 4  # then float32 masters, and float32 sums of the gradients
    split = [setup.world if setup.zero >= stage else 1 for stage in (1, 2, 3)]
    on_device = 0 if setup.offload != "none" else 1
    whole = total * width if setup.weight_bytes is None else setup.weight_bytes
    weights = whole / split[2]
    if setup.offload == "all":  # gathered a block at a time, and the next one beside it
        weights = min(weights, 2 * width * total / setup.model.n_layer)
    masters = 4 * trained / split[0] * on_device if low else 0
    moments = 8 * trained / split[0] * on_device
    sums = 4 * trained / split[0] * on_device if low else 0  # of all passes
    gradients = trained * width / split[1] + sums
    activations = _activations(setup) + _states(setup)
    held = gradients if not low else sums
    stay = setup.accumulate > 1 or recorded or setup.carried > 0
    beside = held if stay else 0
    if low and setup.zero == 0 and not stay:  # one after another becomes float32, and is freed
        gradients = sums + min(trained, setup.model.vocab_size * setup.model.n_embd) * width
    if setup.carried > 1:  # what the segments of a loss add up to, until it is whole
        beside += trained * width / split[1]
    if setup.zero:
        beside, gradients = _under_zero(setup, beside, gradients, sums, trained)
    peak = max(activations + beside, gradients)
    used = weights + masters + moments + peak
    reserve = _CONTEXT + _WASTE * used if setup.on_gpu else 0
    return Memory(weights, masters, moments, gradients, activations, reserve, used + reserve)


def _under_zero(
    setup: Setup, beside: float, gradients: float, sums: float, trained: float
) -> tuple[float, float]:
    """What DeepSpeed holds beside activations, and at the end of the backward pass or in a step."""
    if setup.zero == 1:  # its sums stay from step to step
        return max(beside, sums), gradients
    if setup.zero == 2:
        # A full buffer is copied to be reduced, and its last gradient becomes float32.
        largest = 4 * min(trained, setup.model.vocab_size * setup.model.n_embd)
        reduced = min(_bucket(setup), setup.dtype.itemsize * trained)
        return beside, sums + _bucket(setup) + reduced + largest
    # Buffer and sums stay; an update makes three float32 copies of the gradients.
    stay = sums + _bucket(setup)
    return stay, stay + 3 * sums


def _bucket(setup: Setup) -> float:
    return setup.bucket * setup.dtype.itemsize


def _states(setup: Setup) -> float:
    """The states between the segments of a loss, one that is being made, and its gradient."""
    if not setup.carried:
        return 0
    model = setup.model
    wkv, shifts = 4 * model.head_size * model.n_embd, 2 * model.n_embd * setup.dtype.itemsize
    return (setup.carried + 2) * model.n_layer * setup.micro_bsz * (wkv + shifts)


def _activations(setup: Setup) -> float:
    model, block = setup.model, setup.footprint
    stream = setup.tokens * model.n_embd * setup.dtype.itemsize  # one [M, C]
    head = 2 * stream + loss_workspace(
        setup.tokens,
        model.n_embd,
        model.vocab_size,
        setup.dtype,
        on_gpu=setup.on_gpu,
        fused=setup.fused_loss,
        trained=setup.trained_names is None or "head.weight" in setup.trained_names,
    )
    workspace = block.workspace + (_bucket(setup) if setup.zero == 2 else 0)
    if not setup.grad_cp:
        return stream + model.n_layer * block.saved + max(head, workspace)
    kept = stream + (block.kernel if setup.grad_cp == "selective" else 0)
    shared = stream if model.arch == "x070" else 0  # v_first
    return stream + shared + model.n_layer * kept + max(head, block.saved + workspace)


def estimate_speed(setup: Setup, card: Card, *, compiled: bool, recorded: bool = False) -> float:
    """Estimate the tokens a second of one device; nothing of it has been measured on a GPU yet.

    Args:
        setup: the step.
        card: the device's data sheet.
        compiled: whether the blocks are compiled.
        recorded: whether passes are CUDA graphs, which start as one.
    """
    work, launching = estimate_times(setup, card, compiled=compiled)
    return setup.tokens / (work if recorded else max(work, launching))


def estimate_times(setup: Setup, card: Card, *, compiled: bool) -> tuple[float, float]:
    """Estimate the seconds of a pass: the device's work, and starting its operations one by one.

    Arguments are those of :func:`estimate_speed`; both run at the same time.
    """
    model, block = setup.model, setup.footprint
    again = 4 / 3 if setup.grad_cp else 1.0  # the forward pass is a third of the work
    products = train_flops(model) * setup.tokens * again
    share = _PRODUCT_SHARE * model.n_embd / (model.n_embd + _NARROW)
    seconds = products / (card.tflops * 1e12 * share)
    left = _COMPILED_BESIDE_KERNELS if setup.fused else _COMPILED
    traffic = model.n_layer * block.traffic * (left if compiled else 1) * again
    if block.kernel:
        kernel_again = 7 / 6 if setup.grad_cp is True else 1.0  # its forward pass is the cheaper
        elements = model.n_layer * setup.tokens * model.n_embd
        traffic += _KERNEL_BYTES * elements * kernel_again
    traffic += loss_traffic(setup.tokens, model.n_embd, model.vocab_size, fused=setup.fused_loss)
    traffic += _OPTIMIZER_BYTES * n_parameters(model) / setup.accumulate
    seconds += traffic / (card.gb_per_s * 1e9 * _COPY_SHARE)
    launches = model.n_layer * block.launches * again * (left if compiled else 1)
    return seconds, launches * _LAUNCH_SECONDS


def would_fit(setup: Setup, limit: float) -> list[tuple[str, Setup]]:
    """Say what to change for a step to fit.

    Tried, in this order: the largest pass that fits (more passes make up for it), the same with
    activations computed again, and where there are several processes each ZeRO stage and offload.

    Args:
        setup: the step that does not fit.
        limit: bytes a device has.

    Returns:
        At most three changes as settings of a recipe, each with the step it leads to.
    """
    found = []
    for sharding in _shardings(setup):
        for again in ({},) if setup.grad_cp is True else ({}, {"grad_cp": True}):
            for micro in _divisors(setup.micro_bsz):
                passes = {"micro_bsz": micro, "accumulate": setup.samples // micro}
                change = again | ({} if micro == setup.micro_bsz else passes) | sharding
                changed = replace(setup, **change)
                if change and estimate_memory(changed).total <= limit:
                    found.append((_as_settings(change), changed))
                    break
    return found[:3]


def _shardings(setup: Setup) -> list[dict[str, Any]]:
    if setup.world == 1:
        return [{}]
    stages = [{"zero": stage} for stage in range(setup.zero + 1, 4)]
    offload = [{"zero": 3, "offload": "optimizer"}] if setup.offload == "none" else []
    return [{}, *stages, *offload]


def _divisors(number: int) -> list[int]:
    return [d for d in range(number, 0, -1) if number % d == 0]


def _as_settings(change: dict[str, Any]) -> str:
    names = {"accumulate": "accumulate_grad_batches"}
    return ", ".join(
        f"train.{names.get(name, name)} {str(value).lower()}" for name, value in change.items()
    )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
