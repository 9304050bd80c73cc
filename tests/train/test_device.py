"""Where and in which precision a run trains."""

import pytest

from rwkvkit.errors import RecipeError
from rwkvkit.train.device import choose_placement


@pytest.mark.parametrize(
    ("precision", "begun_in", "hint"),
    [("fp16", None, "bf16 or fp32, or leave it out"), ("auto", "float16", "go on on a GPU")],
    ids=["asked", "begun"],
)
def test_fp16_is_for_gpus(precision: str, begun_in: str | None, hint: str) -> None:
    with pytest.raises(RecipeError, match="fp16 trains on a GPU only") as caught:
        choose_placement("cpu", precision, begun_in)
    assert caught.value.where == "train.precision"
    assert hint in caught.value.hint
