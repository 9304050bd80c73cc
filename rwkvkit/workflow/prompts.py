"""Prompts in a recipe: they are read with the tokenizer that encodes its documents."""

from collections.abc import Sequence

from rwkvkit.data.stages import Encode
from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig
from rwkvkit.recipe.schema import Recipe
from rwkvkit.tokenizer.text import Tokenizer


def recipe_tokenizer(recipe: Recipe) -> Tokenizer:
    """Load the tokenizer of a recipe, that of the World models if it names a dataset instead.

    See ``Encode.load`` for the errors raised.
    """
    stages = (stage for stage in recipe.prepare or [] if isinstance(stage, Encode))
    return next(stages, Encode()).load()


def check_tokenizer(recipe: Recipe, vocab_size: int) -> None:
    """Check before encoding that the model knows every token that the tokenizer can give.

    Raises:
        RecipeError: it does not.
    """
    largest = recipe_tokenizer(recipe).max_id
    if largest >= vocab_size:
        raise RecipeError(
            f"the recipe's tokenizer gives ids up to {largest}, and the model knows "
            f"{vocab_size} tokens",
            where="model.vocab_size",
            hint=f"set it to {largest + 1} or more, or encode with the tokenizer of the model",
        )


def encode_prompts(
    recipe: Recipe, prompts: Sequence[str], model: ModelConfig, where: str
) -> dict[str, list[int]]:
    """Return the token ids of each prompt.

    Args:
        recipe: whose tokenizer counts.
        prompts: the texts.
        model: which is to continue them.
        where: the key of the recipe that holds them, for errors.

    Raises:
        RecipeError: the model cannot continue texts, or lacks a token of theirs.
    """
    if prompts and model.head_qk:
        raise RecipeError(
            "a model with HeadQK cannot generate text token by token",
            where=where,
            hint="leave it out, or set model.head_qk to 0",
        )
    found = {}
    for prompt in prompts:
        ids = recipe_tokenizer(recipe).encode(prompt).tolist()
        largest = max(ids, default=-1)
        if not 0 <= largest < model.vocab_size:
            raise RecipeError(
                f"{prompt!r} has token {largest}, and the model knows {model.vocab_size} tokens"
                if ids
                else "the prompt is empty",
                where=where,
                hint="use a model of the tokenizer's vocabulary, or leave it out"
                if ids
                else 'give a text, such as "\\n"',
            )
        found[prompt] = ids
    return found
