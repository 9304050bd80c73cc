"""``rwkvkit init-weights``: create the initial weights of a recipe."""

from typing import TYPE_CHECKING

import click

from rwkvkit.cli.console import Console, command, shape, table
from rwkvkit.cli.options import recipe_options
from rwkvkit.recipe.load import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from rwkvkit.workflow.weights import InitialWeights


@click.command("init-weights", short_help="Create the initial (random) weights of a recipe.")
@recipe_options
def init_weights(
    recipe_name: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Create the initial (random) weights of RECIPE as RUN_DIR/rwkv-init.pth.

    They follow from the recipe's seed and sizes. With `model.grow_from`, the weights of a smaller
    checkpoint are enlarged to the new size.
    """
    from rwkvkit.model.describe import n_parameters, summary
    from rwkvkit.model.init import init_table
    from rwkvkit.workflow.weights import InitialWeights

    console = Console(as_json=as_json)
    weights = InitialWeights.of(load_recipe(recipe_name, overrides))
    weights.check()
    status = weights.status()
    parameters = n_parameters(weights.config)
    facts = {
        "path": str(weights.path),
        "skipped": status.up_to_date,
        "reason": status.reason,
        "model": weights.config.model_dump(),
        "parameters": parameters,
    }
    if dry_run:
        console.result(f"{weights.path}: {summary(weights.config)}")
        verb = "nothing to do" if status.up_to_date else "would create them"
        console.result(f"{verb}: {status.reason}")
    elif status.up_to_date:
        console.result(f"init-weights: nothing to do: {status.reason}")
    else:
        console.note(f"init-weights: {status.reason}: creating {summary(weights.config)}")
        rows = init_table(draw(weights, console))
        cells = [(row.name, shape(row.shape), row.rule, row.mean, row.std) for row in rows]
        for line in table(["tensor", "shape", "rule", "mean", "std"], cells):
            console.result(line)
        console.result(f"wrote {weights.path}: {parameters:,} parameters")
        console.result(f"next: {command('train', recipe_name)}")
    console.finish(facts)


def draw(weights: "InitialWeights", console: Console) -> dict[str, "Tensor"]:
    """Create initial weights and show how far that is: large matrices take seconds each."""

    def show(done: int, total: int) -> None:
        console.progress(f"init-weights: {done} of {total} tensors", last=done == total)

    return weights.make(show)
