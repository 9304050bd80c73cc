"""A run's folder is never mixed with another run's."""

from pathlib import Path

import pytest

from rwkvkit.errors import DataError, RecipeError
from rwkvkit.recipe.load import load_recipe
from rwkvkit.train.run_record import check_record, write_record
from rwkvkit.workflow.identity import recipe_record

RECORD = {"recipe": {"train": {"lr_init": 1e-4}, "seed": 1}, "data": {"n_tokens": 7}}


def test_same_and_partial_records_pass(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    check_record(tmp_path, RECORD)
    check_record(tmp_path, {"recipe": RECORD["recipe"]})


def test_files_may_move(tmp_path: Path) -> None:
    was = {"data": "val", "model": {"weights": "base.pth", "n_layer": 2}}
    write_record(tmp_path, {"recipe": was, "weights": "a" * 64})
    now = {"data": "/val", "model": {"weights": "/base.pth", "n_layer": 2}}
    check_record(tmp_path, {"recipe": now, "weights": "a" * 64})
    with pytest.raises(RecipeError, match="weights aaaaaaaaaaaa… -> bbbbbbbbbbbb…"):
        check_record(tmp_path, {"recipe": now, "weights": "b" * 64})


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
    assert caught.value.hint == (
        "give this run another name or run_dir, or undo the change to resume that run"
    )


def test_a_finished_run_can_be_trained_on(tmp_path: Path) -> None:
    write_record(tmp_path, {"recipe": {"train": {"total_steps": 4, "global_batch": 8}}})
    (tmp_path / "rwkv-final.pth").touch()
    longer = {"recipe": {"train": {"total_steps": 8, "global_batch": 8}}}
    with pytest.raises(RecipeError, match="total_steps 4 -> 8") as caught:
        check_record(tmp_path, longer)
    assert f"`model: {{weights: {tmp_path}/rwkv-final.pth}}`" in str(caught.value.hint)
    assert "global batch" not in str(caught.value.hint)


def test_another_global_batch_is_explained(tmp_path: Path) -> None:
    write_record(tmp_path, {"recipe": {"train": {"global_batch": 8}}})
    with pytest.raises(RecipeError, match="global_batch 8 -> 4") as caught:
        check_record(tmp_path, {"recipe": {"train": {"global_batch": 4}}})
    assert "train.micro_bsz x train.accumulate_grad_batches x processes" in str(caught.value.hint)
