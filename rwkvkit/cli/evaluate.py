"""``rwkvkit evaluate``: the loss of a checkpoint on a dataset."""

import math
from pathlib import Path

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.options import json_option
from rwkvkit.errors import DivergedError
from rwkvkit.train.sampling import SamplingConfig


@click.command(short_help="Measure the loss of a checkpoint on a dataset.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="What fine-tuning left: the folder of an adapter, or a .pth file of tuned states.",
)
@click.option(
    "--ctx-len",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens a sample, or a segment of one.",
)
@click.option(
    "--order",
    type=click.Choice(["auto", "cubic", "packed", "infctx"]),
    default="auto",
    show_default=True,
    help="auto: packed where there is a loss mask; cubic goes through the tokens as they stand.",
)
@click.option(
    "--micro-bsz",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Samples a pass; the result does not depend on it.",
)
@click.option("--max-samples", type=click.IntRange(min=1), help="The most samples; all by default.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True
)
@json_option
def evaluate(
    checkpoint: Path,
    prefix: Path,
    adapter: Path | None,
    ctx_len: int,
    order: str,
    micro_bsz: int,
    max_samples: int | None,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Measure the cross entropy of CHECKPOINT on the dataset PREFIX (.bin and .idx).

    CHECKPOINT is a .pth file, or the folder of a run or checkpoint. Where the dataset has a loss
    mask, only the tokens it marks count.
    """
    from rwkvkit.data.binidx import open_binidx
    from rwkvkit.model.adapter import check_base
    from rwkvkit.model.checkpoint import load_model
    from rwkvkit.train.device import choose_placement
    from rwkvkit.train.held_out import held_out_loss
    from rwkvkit.train.orders import choose_order, validation_samples
    from rwkvkit.workflow.locate import checkpoint_file

    console = Console(as_json=as_json)
    checkpoint = checkpoint_file(checkpoint, console.note)
    data = open_binidx(prefix)
    sampling = SamplingConfig.model_validate({"order": order})
    placement = choose_placement(device, precision)
    chosen, reason = choose_order(sampling, data)
    if adapter:
        check_base(checkpoint, adapter)
    model = load_model(checkpoint, adapter=adapter, dtype=placement.dtype, device=placement.device)
    samples = validation_samples(
        chosen, sampling, data, ctx_len=ctx_len, vocab_size=model.config.vocab_size, seed=0
    )
    for line in (*placement.reasons, f"order {chosen}: {reason}"):
        console.note(line)
    found = held_out_loss(
        model, samples, micro_bsz=micro_bsz, max_samples=max_samples or len(samples.rows)
    )
    if not math.isfinite(found.loss):
        raise DivergedError(
            f"the loss is {found.loss}",
            where=str(checkpoint),
            hint="its weights are damaged or the training diverged: rwkvkit inspect shows them",
        )
    console.result(
        f"loss {found.loss:.4f}, perplexity {found.perplexity:,.2f}, on {found.targets:,} targets"
        f" of {found.samples:,} samples"
    )
    console.finish(
        {
            "checkpoint": str(checkpoint),
            "prefix": str(prefix),
            "order": chosen,
            "ctx_len": ctx_len,
            "loss": found.loss,
            "perplexity": found.perplexity,
            "targets": found.targets,
            "samples": found.samples,
        }
    )
