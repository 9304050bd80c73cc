"""``rwkvkit verify``: check a dataset against its manifest."""

from pathlib import Path

import click

from rwkvkit.cli.console import Console, command
from rwkvkit.cli.options import json_option, vocab_option
from rwkvkit.data.verify import verify_dataset


@click.command(short_help="Check a dataset against its manifest.")
@click.argument("prefix", type=click.Path(path_type=Path))
@vocab_option
@json_option
def verify(prefix: Path, vocab: Path | None, as_json: bool) -> None:
    """Check the dataset PREFIX: files and hashes, index, every token, samples of its text.

    Exits with 0 if all is right, with 4 at the first thing that is not.
    """
    console = Console(as_json=as_json)
    found = []
    for fact in verify_dataset(prefix, vocab):
        console.result(f"ok: {fact}")
        found.append(fact)
    console.result(f"next: {command('inspect', prefix)}")
    console.finish({"prefix": str(prefix), "verified": found})
