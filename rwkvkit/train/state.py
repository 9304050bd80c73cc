"""The files of a training state, which do not depend on the engine or the number of processes.

``optimizer.pt`` and, where several processes write, ``optimizer-1.pt`` and so on hold tensors by
parameter: ``exp_avg``, ``exp_avg_sq``, ``step`` and, unless the weights themselves are the
masters, ``master``. The first also holds the random states by rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkvkit.model.checkpoint import write_archive

OPTIMIZER_FILE = "optimizer.pt"

ParameterState = dict[str, Tensor]
"""What AdamW keeps for a parameter, by name of the tensor, each of the parameter's shape."""


@dataclass(frozen=True)
class TrainState:
    """What a training run needs beside the weights to go on.

    Attributes:
        parameters: what the optimizer keeps, by name of the parameter.
        random: states of the random generators, by rank and device.
        loss_scale: of fp16, where DeepSpeed keeps one.
    """

    parameters: Mapping[str, ParameterState]
    random: list[dict[str, Tensor]] = field(default_factory=list)
    loss_scale: float | None = None


def write_state(state: TrainState, folder: Path, rank: int = 0) -> None:
    """Write the part of the state that a process holds.

    Raises:
        SetupError: the file cannot be written.
    """
    more = {} if state.loss_scale is None else {"loss_scale": state.loss_scale}
    content = {"parameters": state.parameters, "random": state.random, "more": more}
    name = OPTIMIZER_FILE if rank == 0 else OPTIMIZER_FILE.replace(".", f"-{rank}.")
    write_archive(content, folder / name)


def read_state(folder: Path) -> TrainState:
    """Read the parts that all processes wrote; the tensors stay on disk until they are used."""
    parameters: dict[str, ParameterState] = {}
    first: dict[str, Any] = {}
    stem = OPTIMIZER_FILE.removesuffix(".pt")
    for path in [folder / OPTIMIZER_FILE, *sorted(folder.glob(f"{stem}-*.pt"))]:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        parameters |= content["parameters"]
        first = first or content
    return TrainState(parameters, first["random"], first["more"].get("loss_scale"))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of a process's random generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore what ``random_state`` returned; a generator it does not know is left alone."""
    torch.set_rng_state(states["cpu"].clone())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
