"""``rwkvkit merge``: a base and the result of fine-tuning become one checkpoint."""

from pathlib import Path

import click

from rwkvkit.cli.console import Console, command, size
from rwkvkit.cli.options import json_option
from rwkvkit.errors import UsageError


@click.command(short_help="Merge an adapter or tuned states into their base.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write."
)
@click.option(
    "--any-base",
    is_flag=True,
    help="Merge even if BASE is not the checkpoint the adapter was trained on.",
)
@json_option
def merge(base: Path, adapter: Path, out: Path, any_base: bool, as_json: bool) -> None:
    """Merge ADAPTER into BASE (.pth), so that one file holds the fine-tuned model.

    ADAPTER is the folder of an adapter (LoRA, DoRA, PiSSA, MiSS), as a run of rwkvkit or peft wrote
    it, a .pth file of tuned states, or the folder of a run that holds one of them.
    """
    from rwkvkit.model.adapter import check_base, merged
    from rwkvkit.model.checkpoint import read_checkpoint, write_checkpoint
    from rwkvkit.workflow.locate import weights_at

    console = Console(as_json=as_json)
    if out.exists():
        raise UsageError("the file exists", where=str(out), hint="give another name with -o")
    adapter = weights_at(adapter, console.note)
    weights = read_checkpoint(base)
    if not any_base:
        check_base(base, adapter, ", or say --any-base")
    result = merged(weights, adapter, str(base))
    changed = sum(tensor is not weights.get(name) for name, tensor in result.items())
    write_checkpoint(result, out)
    written = size(out.stat().st_size)
    console.result(f"wrote {out}, {written}: {changed} of {len(result)} tensors from {adapter}")
    console.result(f'next: {command("generate", out)} --prompt "…"')
    console.finish({"path": str(out), "tensors": len(result), "changed": changed})
