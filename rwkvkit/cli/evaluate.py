"""``rwkvkit evaluate``: the loss of a checkpoint on a dataset."""

import math
from pathlib import Path

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.loading import load, model_options
from rwkvkit.cli.options import json_option
from rwkvkit.errors import DivergedError
from rwkvkit.train.sampling import SamplingConfig

_CTX_LEN = 1024  # where neither the command nor a run says another


@click.command(short_help="Measure the loss of a checkpoint on a dataset.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option(
    "--ctx-len",
    type=click.IntRange(1, 1 << 30),
    help=f"Tokens a sample, or a segment of one; the run's unless given, else {_CTX_LEN}.",
)
@click.option(
    "--order",
    type=click.Choice(["auto", "cubic", "packed", "infctx"]),
    default="auto",
    show_default=True,
    help="auto: packed where there is a loss mask; cubic takes the tokens in file order.",
)
@click.option(
    "--micro-bsz",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Samples a pass; the result does not depend on it.",
)
@click.option("--max-samples", type=click.IntRange(min=1), help="The most samples; all by default.")
@model_options
@json_option
def evaluate(
    checkpoint: Path,
    prefix: Path,
    adapter: Path | None,
    ctx_len: int | None,
    order: str,
    micro_bsz: int,
    max_samples: int | None,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Measure the cross entropy of CHECKPOINT on the dataset PREFIX (.bin and .idx).

    CHECKPOINT is a .pth file, or the folder of a run, a checkpoint or an adapter, whose base is
    found by its record. Where the dataset has a loss mask, only the tokens it marks count.
    """
    from rwkvkit.data.contents import open_dataset
    from rwkvkit.train.held_out import held_out_loss
    from rwkvkit.train.orders import choose_order, validation_samples
    from rwkvkit.workflow.locate import run_ctx_len

    console = Console(as_json=as_json)
    data = open_dataset(prefix)
    sampling = SamplingConfig.model_validate({"order": order})
    chosen, reason = choose_order(sampling, data)
    if ctx_len is None:
        ctx_len = run_ctx_len(adapter or checkpoint) or _CTX_LEN
    model, weights = load(checkpoint, adapter, device, precision, console)
    samples = validation_samples(
        chosen, sampling, data, ctx_len=ctx_len, vocab_size=model.config.vocab_size, seed=0
    )
    console.note(f"ctx_len {ctx_len}, order {chosen}: {reason}")
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
            "checkpoint": str(weights),
            "prefix": str(prefix),
            "order": chosen,
            "ctx_len": ctx_len,
            "loss": found.loss,
            "perplexity": found.perplexity,
            "targets": found.targets,
            "samples": found.samples,
        }
    )
