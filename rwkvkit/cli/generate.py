"""``rwkvkit generate``: continue a prompt, or answer as a chat model."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.loading import load, model_options
from rwkvkit.cli.options import json_option, vocab_option
from rwkvkit.cli.prompt import Prompt, prompt_options
from rwkvkit.errors import DataError

if TYPE_CHECKING:
    from rwkvkit.tokenizer.text import Tokenizer


@click.command(short_help="Continue a prompt with a checkpoint, or ask a chat model.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@prompt_options
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=0.7,
    show_default=True,
    help="Share of the probability from which tokens are drawn.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the random choices.",
)
@vocab_option
@model_options
@json_option
def generate(
    checkpoint: Path,
    prompt: str | None,
    prompt_file: Path | None,
    user: str | None,
    system: str | None,
    stop: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    vocab: Path | None,
    adapter: Path | None,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Continue a prompt with CHECKPOINT, token by token, until the document ends.

    CHECKPOINT is a .pth file, or the folder of a run, a checkpoint or an adapter, whose base is
    found by its record; in a run's folder the run's tokenizer is taken. The prompt is one of
    --prompt, --prompt-file and --user. The same arguments give the same text on the same device.
    """
    from rwkvkit.model.generate import generate as continue_text

    console = Console(as_json=as_json)
    asked = Prompt.of(prompt, prompt_file, user, system, stop, console.note)
    tokenizer = _tokenizer(vocab, adapter or checkpoint, console)
    model, _ = load(checkpoint, adapter, device, precision, console)
    text = continue_text(
        model,
        asked.text,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=asked.stop,
    )
    first = next(text, "")  # before the prompt is shown: drawing it may fail
    console.echo(asked.text)
    pieces = [console.echo(piece) for piece in chain([first], text)]
    console.result("")
    console.finish({"prompt": asked.text, "text": "".join(pieces)})


def _tokenizer(vocab: Path | None, source: Path, console: Console) -> "Tokenizer":
    """Load the tokenizer that was asked for, else that of the run which left the weights."""
    from rwkvkit.tokenizer.text import load_tokenizer
    from rwkvkit.workflow.locate import run_encode

    if vocab is not None:
        return load_tokenizer(vocab)
    encode = run_encode(source)
    if encode.file is not None:
        if not Path(encode.file).is_file():
            raise DataError(
                "the tokenizer of the run is not there",
                where=encode.file,
                hint="put it back, or name the vocabulary file or tokenizer.json with --vocab",
            )
        console.note(f"tokenizer {encode.file}: the run's own")
    return encode.load()
