"""``rwkvkit generate``: continue a prompt."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.options import json_option, vocab_option
from rwkvkit.errors import UsageError

if TYPE_CHECKING:
    from rwkvkit.tokenizer.text import Tokenizer


@click.command(short_help="Continue a prompt with a checkpoint.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="The text to continue.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Result of fine-tuning: an adapter folder or a .pth file of tuned states.",
)
@vocab_option
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
@json_option
def generate(
    checkpoint: Path,
    prompt: str,
    adapter: Path | None,
    vocab: Path | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Continue a prompt with CHECKPOINT, token by token, until the document ends.

    CHECKPOINT is a .pth file, or the folder of a run or checkpoint. The same arguments give the
    same text.
    """
    from rwkvkit.tokenizer.text import load_tokenizer
    from rwkvkit.workflow.locate import checkpoint_file

    console = Console(as_json=as_json)
    text = stream_text(
        checkpoint_file(checkpoint, console.note),
        prompt,
        load_tokenizer(vocab),
        adapter=adapter,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    first = next(text, "")  # before the prompt is shown: drawing it may fail
    console.echo(prompt)
    pieces = [console.echo(piece) for piece in chain([first], text)]
    console.result("")
    console.finish({"prompt": prompt, "text": "".join(pieces)})


def stream_text(
    checkpoint: Path,
    prompt: str,
    tokenizer: "Tokenizer",
    *,
    adapter: Path | None = None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[str]:
    """Load a model and return the text that follows ``prompt``, in pieces of whole characters.

    Raises:
        DataError: the checkpoint or adapter cannot be read, or they do not belong together.
        UsageError: the prompt is empty or without a token, or the vocabularies differ.
    """
    from rwkvkit.model.adapter import check_base
    from rwkvkit.model.checkpoint import load_model
    from rwkvkit.model.generate import generate_tokens
    from rwkvkit.tokenizer.text import text_pieces

    if not prompt:
        raise UsageError("the prompt is empty", where="--prompt", hint='give a text, such as "\\n"')
    if adapter:
        check_base(checkpoint, adapter)
    model = load_model(checkpoint, adapter=adapter)
    prompt_ids = tokenizer.encode(prompt).tolist()
    if not prompt_ids:
        raise UsageError(
            "the tokenizer leaves nothing of the prompt",
            where="--prompt",
            hint="give another text, or the tokenizer of the model with --vocab",
        )
    if max(prompt_ids) >= model.config.vocab_size:
        raise UsageError(
            f"the model knows {model.config.vocab_size} tokens, and the prompt has token "
            f"{max(prompt_ids)}",
            where=str(checkpoint),
            hint="name the model's vocabulary file or tokenizer.json with --vocab",
        )
    tokens = generate_tokens(
        model,
        prompt_ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=(tokenizer.end_id,),
    )
    return text_pieces(tokenizer, prompt_ids, tokens)
