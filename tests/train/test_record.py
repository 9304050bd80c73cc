"""A run's folder is never mixed with another run's."""

from pathlib import Path

import pytest

from rwkvkit.errors import DataError, RecipeError
from rwkvkit.recipe.load import load_recipe
from rwkvkit.train.record import check_record, write_record
from rwkvkit.workflow.identity import recipe_record

RECORD = {"recipe": {"train": {"lr_init": 1e-4}, "seed": 1}, "data": {"n_tokens": 7}}


def test_same_and_partial_records_pass(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    check_record(tmp_path, RECORD)
    check_record(tmp_path, {"recipe": RECORD["recipe"]})


def test_a_record_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is gone") as caught:
        check_record(tmp_path, RECORD)
    assert caught.value.where == str(tmp_path / "run.json")
    assert "put it back" in caught.value.hint


def test_the_spacing_of_saves_decides_where_a_rollback_goes(tmp_path: Path) -> None:
    def saving_every(steps: int, on_spike: str) -> dict:
        wanted = [f"train.save_every={steps}", f"train.guards.on_spike={on_spike}"]
        recipe = load_recipe("quickstart", wanted)
        return recipe_record(recipe, recipe.model, recipe.train, 1)

    assert saving_every(2, "flag") == saving_every(3, "flag")
    write_record(tmp_path, saving_every(2, "rollback"))
    with pytest.raises(RecipeError, match=r"train\.save_every 2 -> 3"):
        check_record(tmp_path, saving_every(3, "rollback"))


def test_every_difference_is_named(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    other = {"recipe": {"train": {"lr_init": 2e-4}, "ctx_len": 4}, "data": {"n_tokens": 7}}
    with pytest.raises(RecipeError) as caught:
        check_record(tmp_path, other)
    assert caught.value.what == (
        "this folder holds another run (recipe.seed 1 -> none, recipe.train.lr_init 0.0001 -> "
        "0.0002, recipe.ctx_len none -> 4)"
    )
    assert "another name" in str(caught.value.hint)
