"""Choose where and in which precision to train, and say why."""

import re
import resource
import sys
from dataclasses import dataclass

import torch

from rwkvkit.errors import RecipeError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# Dense bf16 products with fp32 sums, 1e12 operations a second, from the maker's data sheets. The
# first whose words occur in the device's name counts.
_PEAK = {
    "B200": 2250,
    "H200": 989,
    "GH200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX A6000": 155,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
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
        precision: ``auto``, ``fp32`` or ``bf16``.
        begun_in: dtype of the run that is resumed, ``float32`` or ``bfloat16``; ``auto`` keeps it.
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
                hint="start as many processes as there are GPUs, or set train.device to cpu",
            )
        place = torch.device("cuda", local_rank)
        name = torch.cuda.get_device_name(place)
        device_reason = f"device cuda: {name}"
    else:
        place = torch.device("cpu")
        threads = torch.get_num_threads()
        device_reason = f"device cpu, {threads} threads: " + (
            "the recipe says so" if device == "cpu" else "torch sees no GPU"
        )
    native_bf16 = place.type == "cuda" and torch.cuda.get_device_capability(place) >= (8, 0)
    if precision != "auto":
        dtype, why = _DTYPES[precision], "the recipe says so"
    elif begun_in:
        dtype, why = getattr(torch, begun_in), "as the run began"
    elif native_bf16:
        dtype, why = torch.bfloat16, "the GPU computes in it"
    else:
        dtype, why = torch.float32, "this device does not compute in bf16 at speed"
    name = "fp32" if dtype == torch.float32 else "bf16 with fp32 masters"
    return Placement(place, dtype, (device_reason, f"precision {name}: {why}"))


def peak_flops(placement: Placement) -> float | None:
    """Return the operations a second that a device can do in bf16; None where that is unknown."""
    if placement.device.type != "cuda" or placement.dtype != torch.bfloat16:
        return None
    return _peak_of(torch.cuda.get_device_name(placement.device))


def _peak_of(name: str) -> float | None:
    if "Laptop" in name:
        return None
    return next(
        (peak * 1e12 for part, peak in _PEAK.items() if re.search(rf"\b{part}\b", name)), None
    )


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: a GPU's by torch, otherwise the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
