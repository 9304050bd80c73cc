"""Choose where and in which precision to train, and say why."""

import re
import resource
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rwkvkit.errors import RecipeError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Card(NamedTuple):
    """What the maker's data sheet promises.

    Attributes:
        tflops: dense bf16 products with fp32 sums, 1e12 operations a second.
        gb_per_s: bandwidth of the memory, 1e9 bytes a second.
    """

    tflops: float
    gb_per_s: float


# The first whose words occur in the device's name counts.
_CARDS = {
    "B200": Card(2250, 8000),
    "H200": Card(989, 4800),
    "GH200": Card(989, 4000),
    "H100 PCIe": Card(756, 2000),
    "H100 NVL": Card(835, 3900),
    "H100": Card(989, 3350),
    "H800": Card(989, 3350),
    "A100": Card(312, 1555),
    "A800": Card(312, 1555),
    "L40S": Card(362, 864),
    "L40": Card(181, 864),
    "L4": Card(121, 300),
    "RTX A6000": Card(155, 768),
    "A40": Card(150, 696),
    "A10G": Card(70, 600),
    "A10": Card(125, 600),
    "RTX 5090": Card(210, 1792),
    "RTX 4090": Card(165, 1008),
    "RTX 3090": Card(71, 936),
}


@dataclass(frozen=True)
class Placement:
    """A device and a precision with the reason for each.

    Attributes:
        device: where the model lives.
        dtype: dtype of the weights in the forward and backward pass; masters are float32.
        reasons: one line for the device, one for the precision.
    """

    device: torch.device
    dtype: torch.dtype
    reasons: tuple[str, str]


def choose_placement(
    device: str, precision: str, begun_in: str | None = None, local_rank: int = 0
) -> Placement:
    """Resolve ``auto`` settings from the hardware.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        begun_in: dtype of the run that is resumed, such as ``bfloat16``; ``auto`` keeps it.
        local_rank: number of this process on its machine, which is the number of its GPU.

    Raises:
        RecipeError: a setting asks for what this machine does not have.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise RecipeError(
            "device is cuda, but torch sees no GPU",
            where="train.device",
            hint="install a CUDA build of torch and a driver, or set train.device to auto",
        )
    if has_gpu and device != "cpu":
        if local_rank >= torch.cuda.device_count():
            raise RecipeError(
                f"process {local_rank} of this machine has no GPU of its own: torch sees "
                f"{torch.cuda.device_count()}",
                where="train.device",
                hint="start as many processes as there are GPUs, with srun by --gpus-per-node so "
                "that each sees all of its machine, or set train.device to cpu",
            )
        place = torch.device("cuda", local_rank)
        name = torch.cuda.get_device_name(place)
        device_reason = f"device cuda: {name}"
    else:
        place = torch.device("cpu")
        threads = torch.get_num_threads()
        device_reason = f"device cpu, {threads} thread{'s' * (threads != 1)}: " + (
            "as asked" if device == "cpu" else "torch sees no GPU"
        )
    native_bf16 = place.type == "cuda" and torch.cuda.get_device_capability(place) >= (8, 0)
    if precision != "auto":
        dtype, why = _DTYPES[precision], "as asked"
    elif begun_in:
        dtype, why = getattr(torch, begun_in), "as the run began"
    elif native_bf16:
        dtype, why = torch.bfloat16, "the GPU computes in it"
    else:
        dtype, why = torch.float32, "this device does not compute in bf16 at speed"
    if dtype == torch.float16 and place.type == "cpu":
        raise RecipeError(
            "fp16 trains on a GPU only",
            where="train.precision",
            hint="set train.precision to bf16 or fp32, or leave it out"
            if precision == "fp16"
            else "this run began in it: go on on a GPU, or start a new run under another name",
        )
    short = next(name for name, each in _DTYPES.items() if each == dtype)
    name = short if dtype == torch.float32 else f"{short} with fp32 masters"
    return Placement(place, dtype, (device_reason, f"precision {name}: {why}"))


def peak_flops(placement: Placement) -> float | None:
    """Return the operations a second that a device can do in bf16; None where that is unknown."""
    card = card_at(placement.device) if placement.dtype == torch.bfloat16 else None
    return None if card is None else card.tflops * 1e12


def card_of(name: str) -> Card | None:
    """Return the data sheet of a GPU by the name that the driver gives it, or None."""
    if "Laptop" in name:
        return None
    return next((card for part, card in _CARDS.items() if re.search(rf"\b{part}\b", name)), None)


def card_at(device: torch.device) -> Card | None:
    """Return the data sheet of a device, or None where it is not known or no GPU."""
    return card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Return the most bytes taken so far: from a GPU by torch, otherwise by the process.

    What torch has reserved, not what tensors hold: a recorded pass keeps its memory without any.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
