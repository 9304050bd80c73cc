"""The dataset of a recipe: the build that makes it, or the files it names."""

from pathlib import Path

from rwkvkit.data.build import Build
from rwkvkit.errors import RecipeError
from rwkvkit.recipe.schema import Recipe


def dataset_prefix(recipe: Recipe) -> Path:
    """Return the dataset a recipe makes or names.

    Raises:
        RecipeError: it does neither.
    """
    if recipe.prepare is not None:
        return make_build(recipe).prefix
    if recipe.data is not None:
        return Path(recipe.data)
    raise RecipeError(
        "the recipe has no data to train on",
        where=recipe.name,
        hint="add a `prepare` list that makes it, or `data: PREFIX` of a .bin and .idx",
    )


def make_build(recipe: Recipe) -> Build:
    """Return the build of a recipe's ``prepare`` list.

    Raises:
        RecipeError: there is none, or its stages do not fit together.
    """
    if recipe.prepare is None:
        raise RecipeError(
            "the recipe has no `prepare` list",
            where=recipe.name,
            hint="rwkvkit recipes show quickstart prints one",
        )
    return Build(recipe.prepare, seed=recipe.seed, ctx_len=recipe.ctx_len)
