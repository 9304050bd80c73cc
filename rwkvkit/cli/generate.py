"""``rwkvkit generate``: continue a prompt, or answer as a chat model."""

from itertools import chain
from pathlib import Path

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.loading import load, model_options
from rwkvkit.cli.options import json_option, vocab_option
from rwkvkit.cli.prompt import Prompt, prompt_options


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
    found by its record. The prompt is one of --prompt, --prompt-file and --user. The same
    arguments give the same text on the same device.
    """
    from rwkvkit.model.generate import generate as continue_text
    from rwkvkit.tokenizer.text import load_tokenizer

    console = Console(as_json=as_json)
    asked = Prompt.of(prompt, prompt_file, user, system, stop, console.note)
    tokenizer = load_tokenizer(vocab)
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
