"""``rwkvkit inspect``: look into a dataset or a checkpoint."""

from pathlib import Path
from typing import Any

import click

from rwkvkit.cli.console import Console, shape, size, table
from rwkvkit.cli.options import json_option
from rwkvkit.errors import UsageError

_BAR = 40  # characters of the histogram's longest bar


@click.command(short_help="Look into a dataset or a checkpoint.")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Describe and verify PATH: a dataset (PREFIX, PREFIX.bin or .idx) or a checkpoint (.pth)."""
    console = Console(as_json=as_json)
    if path.suffix in (".bin", ".idx") or Path(f"{path}.idx").exists():
        _dataset(path, console)
    elif path.is_file():
        _checkpoint(path, console)
    else:
        raise UsageError(
            "there is no such checkpoint, and no dataset with this prefix",
            where=str(path),
            hint="give PREFIX of a .bin and .idx, or a .pth file",
        )


def _dataset(path: Path, console: Console) -> None:
    from rwkvkit.data.describe import describe_binidx

    facts = describe_binidx(path)
    console.result(
        f"dataset {path}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, "
        f"{facts['dtype']}, {size(facts['bytes'])}"
    )
    console.result(f"verified: {', '.join(facts['verified'])}")
    plan = (facts["manifest"] or {}).get("plan")
    if plan:
        console.result(
            f"plan: ctx_len {plan['ctx_len']}, magic_prime {plan['magic_prime']}, "
            f"my_exit_tokens {plan['my_exit_tokens']}"
        )
    if facts["masked"]:
        counted, share = facts["masked"]["counted"], facts["masked"]["share"]
        console.result(f"mask: {counted:,} tokens ({share:.1%}) count in the loss")
    length = "  ".join(f"{name} {value:,.0f}" for name, value in facts["length"].items())
    console.result(f"document length in tokens: {length}")
    most = max((row["documents"] for row in facts["histogram"]), default=0)
    for row in facts["histogram"]:
        bar = "█" * round(_BAR * row["documents"] / most)
        console.result(f"{row['from']:>10,} to {row['to'] - 1:<10,} {row['documents']:>10,}  {bar}")
    for sample in facts["first"] + facts["last"]:
        console.result(f"document {sample['document']:,}, {sample['tokens']:,} tokens:")
        console.result(f"    {sample['text']!r}")
        for part in sample.get("counted", []):
            console.result(f"    in the loss: {part!r}")
    console.finish(facts)


def _checkpoint(path: Path, console: Console) -> None:
    from rwkvkit.model.describe import describe_checkpoint

    facts: dict[str, Any] = describe_checkpoint(path)
    dtypes = ", ".join(f"{count} tensors in {dtype}" for dtype, count in facts["dtypes"].items())
    console.result(f"checkpoint {path}: {facts['summary']}")
    console.result(f"{dtypes}, {size(facts['bytes'])}")
    rows = [
        (row["name"], shape(row["shape"]), row["dtype"], row["mean"], row["std"])
        for row in facts["tensors"]
    ]
    for line in table(["tensor", "shape", "dtype", "mean", "std"], rows):
        console.result(line)
    for name in facts["not_finite"]:
        console.result(f"{name} holds values that are not finite")
    console.finish(facts)
