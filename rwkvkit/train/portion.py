"""What of a model a run trains, and so what its checkpoints and its result hold."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rwkvkit.errors import DataError
from rwkvkit.files import fsync
from rwkvkit.model.adapter import (
    STATE_FILE,
    peft_library,
    read_adapter,
    write_adapter,
    write_record,
)
from rwkvkit.model.checkpoint import read_checkpoint, write_checkpoint
from rwkvkit.model.rwkv import RWKV
from rwkvkit.train.patterns import plain_name
from rwkvkit.train.pissa import Pissa

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
            DataError: a file is damaged, or of another model.
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
        path = folder / MODEL_FILE
        try:
            model.load_state_dict(read_checkpoint(path))
        except RuntimeError as error:
            raise DataError(
                "holds the weights of another model than this run's",
                where=str(path),
                hint="give the recipe's model as it was when the run began, or another run_dir",
            ) from error

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write a whole checkpoint."""
        write_checkpoint(tensors, path)


class StatePortion:
    """The states that documents start from, in the reference's file of only those tensors."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._base = base

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write ``state.pth`` and its record."""
        self.write(tensors, folder / STATE_FILE)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Read ``state.pth``."""
        _load(model, read_checkpoint(folder / STATE_FILE))

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the states, with the base's fingerprint beside them."""
        states = {name: t for name, t in tensors.items() if name.endswith(".att.time_state")}
        write_record(path, self._base)
        write_checkpoint(states, path)


class AdapterPortion:
    """An adapter, and parameters of the base that train with it, in peft's files.

    Under PiSSA what is saved is the change against the base as it was; see ``Pissa``.

    Args:
        model: with the adapter injected, before any training.
        config: peft's configuration.
        whole: names of parameters of the base that train.
        base: the record of the base's file.
    """

    def __init__(self, model: RWKV, config: Any, whole: set[str], base: Mapping[str, Any]) -> None:
        self._model = model
        self._config = config
        self._whole = whole
        self._base = base
        self._pissa: Pissa | None = None
        if getattr(config, "init_lora_weights", None) == "pissa":
            self._pissa = Pissa(model, config, _adapter_tensors(model, model.state_dict()))

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write the adapter's files and the record of its base."""
        own = _adapter_tensors(self._model, tensors)
        config = self._config
        if self._pissa:
            own, config = self._pissa.against_base(own), self._pissa.config_against_base()
        whole = {plain_name(n): t for n, t in tensors.items() if plain_name(n) in self._whole}
        write_adapter(folder, config, own, whole)
        write_record(folder, self._base)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Read the adapter's files."""
        _, own, whole = read_adapter(folder)
        if self._pissa:
            own = self._pissa.split(own)
        named = {plain_name(name): name for name in model.state_dict()}
        peft_library().set_peft_model_state_dict(model, own)
        _load(model, {named[name]: tensor for name, tensor in whole.items()})

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the adapter as a folder."""
        beside = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            self.save(tensors, beside)
            if path.exists():
                shutil.rmtree(path)
            beside.rename(path)
            fsync(path.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _adapter_tensors(model: RWKV, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = peft_library().get_peft_model_state_dict(
        model, state_dict=dict(tensors)
    )
    return found


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors by name over those of a model; names it does not have are a bug."""
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown, unknown
