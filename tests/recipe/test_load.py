"""Recipes are checked whole, and every mistake is named with its place."""

import re
from pathlib import Path

import pytest

from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ARCHS, sizes
from rwkvkit.recipe.load import bundled_recipes, find_recipe, load_recipe
from rwkvkit.recipe.reference import reference
from rwkvkit.recipe.schema import ModelSpec

ROOT = Path(__file__).parents[2]

GOOD = """\
name: demo
ctx_len: 16
prepare:
  - read:
      - {path: a.jsonl, repeat: 4}
      - path: b.jsonl
        field: text
  - encode: world
  - repeat-shuffle: {epochs: 3}
  - write-binidx: out/data
  - plan
model: {size: x070-0.1b}
train: {micro_bsz: 8, lr_init: 1e-5, lr_final: 1e-5}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_one(recipe: Path) -> None:
    found = load_recipe(str(recipe), ["train.micro_bsz=2", "prepare.repeat-shuffle.epochs=1"])
    assert found.folder == Path("out/demo")
    assert found.seed == 42
    assert [stage.key for stage in found.prepare or []] == [
        "read",
        "encode",
        "repeat-shuffle",
        "write-binidx",
        "plan",
    ]
    assert found.train is not None
    assert found.train.micro_bsz == 2
    assert found.train.lr_init == 1e-5
    assert found.model is not None
    assert found.model.resolve().n_embd == 768


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("field: text", "feild: text", "7:9", "unknown key (did you mean 'field'?)"),
        ("repeat: 4", "repeat: many", "5:33", "valid integer, not 'many'"),
        ("repeat: 4", "repeat: 0", "5:33", "greater than or equal to 1, not 0"),
        ("repeat-shuffle:", "repeat-shufle:", "9:5", "did you mean 'repeat-shuffle'?"),
        ("epochs: 3", "epoch: 3", "9:22", "did you mean 'epochs'?"),
        ("  - plan", "  - plan: {x: 1}", "11:12", "prepare[4].plan.x: unknown key"),
        ("ctx_len: 16", "ctx_len: '16'", "2:10", "ctx_len: should be a valid integer, not '16'"),
        ("ctx_len: 16\n", "", "1:1", "ctx_len: this key is required"),
        ("micro_bsz: 8, ", "", "", "train.micro_bsz: this key is required"),
        ("lr_init: 1e-5", "lr_init: no", "13:32", "valid number, not 'no'"),
        ("lr_final: 1e-5", "lr_finale: 1e-5", "13:38", "did you mean 'lr_final'?"),
        ("name: demo", "name: a/b", "1:7", "name: should match ^[A-Za-z0-9]"),
        ("lr_final: 1e-5", "lr_final: 1e-5, trackers: wandb", "", "should be a list, not 'wandb'"),
        ("model:", "modle:", "12:1", "did you mean 'model'?"),
        ("  - encode: world", "  - encode: [1]", "8:", "prepare[1].encode"),
        ("  - plan", "  - 7", "11:5", "should be one stage"),
        ("- {path", "- {path: c.jsonl, chat: ''}\n      - {path", "5:31", "at least 1 character"),
        ("  - plan", "  - plan\n  - read: []", "12:11", "prepare[5].read: the list is empty"),
        ("1e-5}", "1e-5, grad_cp: 1}", "", "should be true or false, not 1"),
        ("name: demo", "name: demo\ndata: x", "", "give one of them"),
        ("1e-5}", "1e-5, my_exit_tokens: 5, total_steps: 5}", "13:8", "both end the run"),
    ],
)
def test_one_mistake(recipe: Path, old: str, new: str, place: str, message: str) -> None:
    recipe.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe))
    assert f"{recipe}:{place}" in caught.value.what
    assert message in caught.value.what
    assert caught.value.what.count("\n") == (1 if "lr_finale" in new or "grad_cp" in new else 0)
    assert caught.value.hint


@pytest.mark.parametrize("more", ["", "data: x\n"])
def test_an_empty_prepare_list(recipe: Path, more: str) -> None:
    recipe.write_text(f"name: demo\nctx_len: 4\nprepare: []\n{more}")
    with pytest.raises(RecipeError, match=":3:10  prepare: the list is empty"):
        load_recipe(str(recipe))


def test_all_mistakes_at_once(recipe: Path) -> None:
    text = GOOD.replace("field", "feild").replace("epochs: 3", "epochs: x").replace("name", "nme")
    recipe.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe))
    keys = [line.split("  ")[1].partition(":")[0] for line in caught.value.what.splitlines()]
    assert sorted(keys) == [
        "name",
        "nme",
        "prepare[0].read[1].feild",
        "prepare[2].repeat-shuffle.epochs",
    ]
    assert "rwkvkit recipes keys" in str(caught.value.hint)


def test_a_mistake_in_an_override_is_blamed_on_it(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"--set train\.keep=x  train\.keep: should be"):
        load_recipe(str(recipe), ["train.keep=x"])


def test_unknown_size(recipe: Path) -> None:
    recipe.write_text(GOOD.replace("x070-0.1b", "x070-01b"))
    model = load_recipe(str(recipe)).model
    assert model is not None
    with pytest.raises(RecipeError, match="unknown size") as caught:
        model.resolve()
    assert "did you mean 'x070-0.1b'" in str(caught.value.hint)


def test_sizes_that_contradict(recipe: Path) -> None:
    recipe.write_text(GOOD.replace("size: x070-0.1b", "arch: x070, n_layer: 2, n_embd: 100"))
    model = load_recipe(str(recipe)).model
    assert model is not None
    with pytest.raises(RecipeError, match="n_embd 100 is not a multiple of head_size 64"):
        model.resolve()


def test_sizes_that_are_missing(recipe: Path) -> None:
    recipe.write_text(GOOD.replace("size: x070-0.1b", "arch: x070"))
    model = load_recipe(str(recipe)).model
    assert model is not None
    with pytest.raises(RecipeError, match="n_layer and n_embd are not given"):
        model.resolve()


def test_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart") == bundled_recipes()["quickstart"]
    assert find_recipe("pipelines/quickstart.yaml") == bundled_recipes()["quickstart"]
    (tmp_path / "quickstart").write_text("mine")
    assert find_recipe("quickstart").read_text() == "mine"
    with pytest.raises(RecipeError, match=r"no such recipe \(did you mean 'pretrain'\?\)"):
        find_recipe("pretrian.yaml")


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_a_recipe_that_ships_goes_by_its_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_tabs(recipe: Path) -> None:
    recipe.write_text(GOOD.replace("  - plan", "\t- plan"))
    with pytest.raises(RecipeError, match="fix the YAML at this place, with spaces") as caught:
        load_recipe(str(recipe))
    assert caught.value.where == f"{recipe}:11:1"


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="is not UTF-8\n  hint: save it as UTF-8"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_every_size_is_documented() -> None:
    description = str(ModelSpec.model_fields["size"].description)
    listed = re.findall(r"``([\d.]+b)`` \((\d+) x (\d+)\)", " ".join(description.split()))
    assert {
        (f"{arch}-{size}", int(n_layer), int(n_embd))
        for size, n_layer, n_embd in listed
        for arch in ARCHS
    } == {(name, shape["n_layer"], shape["n_embd"]) for name, shape in sizes().items()}


def test_every_key_is_documented() -> None:
    assert reference() in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert "|  |\n" not in reference()
    assert "| `dataset` | string or mapping |" in reference()
    assert "| `guards` | mapping |" in reference()
