"""Choose where and in which precision to train, and say why."""

from dataclasses import dataclass

import torch

from rwkvkit.errors import RecipeError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def choose_placement(device: str, precision: str, begun_in: str | None = None) -> Placement:
    """Resolve ``auto`` settings from the hardware.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        begun_in: dtype of the run that is resumed, ``float32`` or ``bfloat16``; ``auto`` keeps it.

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
        place = torch.device("cuda")
        name = torch.cuda.get_device_name()
        device_reason = f"device cuda: {name}"
    else:
        place = torch.device("cpu")
        threads = torch.get_num_threads()
        device_reason = f"device cpu, {threads} threads: " + (
            "the recipe says so" if device == "cpu" else "torch sees no GPU"
        )
    native_bf16 = place.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
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
