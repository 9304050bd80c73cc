"""A model that a command asks for: which weights, where, and in which precision."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.options import Command
from rwkvkit.errors import RecipeError, SetupError

if TYPE_CHECKING:
    from rwkvkit.model.rwkv import RWKV


def model_options(command: Command) -> Command:
    """Add ``--adapter``, ``--device`` and ``--precision``."""
    for option in (
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            default="auto",
            show_default=True,
            help="auto: bf16 on a GPU that computes in it, else fp32.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto: a GPU if there is one.",
        ),
        click.option(
            "--adapter",
            type=click.Path(path_type=Path),
            help="Result of fine-tuning: a run's folder, that of an adapter, or "
            "a .pth file of tuned states.",
        ),
    ):
        command = option(command)
    return command


def load(
    source: Path, adapter: Path | None, device: str, precision: str, console: Console
) -> tuple["RWKV", Path]:
    """Load the model that the arguments of a command name, and note the choices.

    Returns:
        The model, and the file of its weights, or of its base.

    Raises:
        DataError: the weights or the adapter cannot be read, or they do not belong together.
        SetupError: the device is not there.
    """
    from rwkvkit.model.checkpoint import load_model
    from rwkvkit.train.device import choose_placement
    from rwkvkit.workflow.locate import find_weights

    weights = find_weights(source, adapter, console.note)
    try:
        placement = choose_placement(device, precision)
    except RecipeError as error:
        raise SetupError(error.what, where="--device", hint="leave it out, or say cpu") from error
    model = load_model(
        weights.checkpoint,
        adapter=weights.adapter,
        dtype=placement.dtype,
        device=placement.device,
    )
    where, precision_line = placement.reasons
    for line in (*weights.notes, where, precision_line.replace(" with fp32 masters", "")):
        console.note(line)  # masters are for training
    return model, weights.checkpoint
