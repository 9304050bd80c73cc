"""The command group."""

import click

from rwkvkit import __version__
from rwkvkit.cli.doctor import doctor
from rwkvkit.cli.evaluate import evaluate
from rwkvkit.cli.export import export
from rwkvkit.cli.generate import generate
from rwkvkit.cli.init_weights import init_weights
from rwkvkit.cli.inspect import inspect
from rwkvkit.cli.merge import merge
from rwkvkit.cli.prepare import prepare
from rwkvkit.cli.recipes import recipes
from rwkvkit.cli.report import compare, report
from rwkvkit.cli.train import train
from rwkvkit.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rwkvkit")
def app() -> None:
    """Prepare data for RWKV language models and train them.

    Start with `rwkvkit train quickstart`, or copy a recipe: `rwkvkit recipes`.

    Exit codes: 0 done, 1 a bug in rwkvkit, 2 usage, 3 recipe, 4 data, 5 machine, 6 diverged,
    130 interrupted.
    """


for command in (
    prepare,
    init_weights,
    train,
    generate,
    evaluate,
    merge,
    export,
    inspect,
    verify,
    recipes,
    report,
    compare,
    doctor,
):
    app.add_command(command)
