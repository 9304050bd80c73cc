"""``rwkvkit export``: the weights of a run or checkpoint as a file that other programs load."""

from pathlib import Path

import click

from rwkvkit.cli.console import Console, command, size
from rwkvkit.cli.options import json_option
from rwkvkit.errors import UsageError


@click.command(short_help="Write the weights of a run or checkpoint in bf16.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="The .pth file to write."
)
@json_option
def export(source: Path, out: Path, as_json: bool) -> None:
    """Write the weights of SOURCE in bf16, as published models have them.

    SOURCE is a run's folder (its final weights, or those of its newest whole checkpoint), the
    folder of a checkpoint, or a .pth file. What fine-tuning left beside a base, whose record names
    it, is merged into it.
    """
    import torch

    from rwkvkit.model.adapter import merged
    from rwkvkit.model.checkpoint import check_fits, read_checkpoint, write_checkpoint
    from rwkvkit.model.config import config_from_state_dict
    from rwkvkit.workflow.locate import find_weights

    console = Console(as_json=as_json)
    if out.exists():
        raise UsageError("the file exists", where=str(out), hint="give another name with -o")
    path, adapter, notes = find_weights(source, None, console.note)
    weights = read_checkpoint(path)
    if adapter:
        weights = merged(weights, adapter, str(path))
    check_fits(config_from_state_dict(weights, str(path)), weights, str(path))
    for line in notes:
        console.note(line)
    write_checkpoint({name: each.to(torch.bfloat16) for name, each in weights.items()}, out)
    console.result(f"wrote {out}: {adapter or path} in bf16, {size(out.stat().st_size)}")
    console.result(f'next: {command("generate", out)} --prompt "…"')
    console.finish({"path": str(out), "source": str(adapter or path), "tensors": len(weights)})
