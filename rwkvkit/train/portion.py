"""What of a model a run trains, and so what its checkpoints and its result hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from rwkvkit.model.checkpoint import read_checkpoint, write_checkpoint

MODEL_FILE = "model.pth"


class Portion(Protocol):
    """What of a model a run trains.

    The tensors it is given have the names of the model's ``state_dict``, wherever they come from;
    those it does not need may be missing.
    """

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write what is trained as files into the folder of a checkpoint.

        Raises:
            SetupError: a file cannot be written.
        """

    def load(self, model: nn.Module, folder: Path) -> None:
        """Read what ``save`` wrote into the model.

        Raises:
            DataError: a file is damaged.
        """

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the run's result, whole or not at all.

        Raises:
            SetupError: a file cannot be written.
        """


class WholeModel:
    """The weights themselves: a checkpoint holds all of them, frozen ones too."""

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write ``model.pth``, which the PyPI package ``rwkv`` loads."""
        write_checkpoint(tensors, folder / MODEL_FILE)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Read ``model.pth``."""
        model.load_state_dict(read_checkpoint(folder / MODEL_FILE))

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write a whole checkpoint."""
        write_checkpoint(tensors, path)
