"""``rwkvkit inspect``: look into a dataset or a checkpoint."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import click

from rwkvkit.cli.console import Console, shape, size, table
from rwkvkit.cli.options import json_option
from rwkvkit.errors import DataError

_BAR = 40  # characters of the histogram's longest bar


@click.command(short_help="Describe and check a dataset or a checkpoint.")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Describe and verify PATH.

    It is a dataset (PREFIX, PREFIX.bin or .idx), a checkpoint (.pth, or the folder of a run or
    checkpoint), or a result of fine-tuning: an adapter folder or a .pth file of tuned states.
    Exits with 0 if nothing is wrong with it, else with 4.
    """
    console = Console(as_json=as_json)
    if not (path.exists() or path.suffix in (".pth", ".bin", ".idx") or _is_dataset(path)):
        raise DataError(
            f"neither a checkpoint nor a dataset ({path}.bin, .idx)",
            where=str(path),
            hint="give a .pth file, the folder of a run, or the PREFIX of a dataset",
        )
    if zipfile.is_zipfile(path) or not (_is_dataset(path) or path.suffix in (".bin", ".idx")):
        _checkpoint(path, console)
    else:
        _dataset(path, console)


def _is_dataset(path: Path) -> bool:
    return (path.parent / f"{path.name}.idx").exists()


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
    from rwkvkit.model.describe import describe_checkpoint, describe_tuned
    from rwkvkit.workflow.locate import is_tuned, weights_at

    path = weights_at(path, console.note)
    tuned = is_tuned(path)
    facts: dict[str, Any] = describe_tuned(path) if tuned else describe_checkpoint(path)
    dtypes = ", ".join(f"{count} tensors in {dtype}" for dtype, count in facts["dtypes"].items())
    kind = "adapter" if path.is_dir() else "tuned states" if tuned else "checkpoint"
    console.result(f"{kind} {path}: {facts['summary']}")
    if base := facts.get("base"):
        console.result(f"belongs to {base['path']} (SHA-256 {base['sha256'][:12]}…)")
    console.result(f"{dtypes}, {size(facts['bytes'])}")
    rows = [
        (row["name"], shape(row["shape"]), row["dtype"], row["mean"], row["std"])
        for row in facts["tensors"]
    ]
    for line in table(["tensor", "shape", "dtype", "mean", "std"], rows):
        console.result(line)
    for problem in facts["problems"]:
        console.result(f"problem: {problem}")
    if not facts["problems"] and tuned:
        console.result("verified: every value is finite")
    elif not facts["problems"]:
        console.result("verified: every tensor of the architecture is there, finite, and no other")
    console.finish(facts)
    if problems := facts["problems"]:
        # Raised, it would follow the one object of --json with another.
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        console.note(f"error: {path}: {problems[0]}{more}")
        console.note("  hint: write or fetch it again")
        sys.exit(DataError.exit_code)
