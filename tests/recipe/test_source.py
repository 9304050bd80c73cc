"""YAML that means what people think it means, with places."""

import pytest

from rwkvkit.errors import RecipeError, UsageError
from rwkvkit.recipe.source import parse

RECIPE = """\
name: demo
prepare:
  - read:
      - {path: a.jsonl, repeat: 4}
      - path: b.jsonl
  - encode: world
  - repeat-shuffle: {epochs: 3}
  - plan
train: {lr_init: 1e-4}
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5e8", 5e8),
        (".5", 0.5),
        ("-3", -3),
        ("012", 12),
        ("0x10", 16),
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'7'", "7"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse(f"key: {text}", "r.yaml").data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml:3:1", "duplicate key"),
        ("a: [1\nb: 2", "r.yaml:2:2", "expected ','"),
        ("- 1", "r.yaml:1:1", "a recipe is a mapping"),
        ("", "r.yaml:1:1", "a recipe is a mapping"),
        ("a: \0", "r.yaml", "not YAML"),
        ("a: " + "9" * 5000, "r.yaml", "not YAML for a recipe: Exceeds the limit"),
        ("a: " + "[" * 3000 + "]" * 3000, "r.yaml", "not YAML for a recipe: maximum recursion"),
    ],
)
def test_broken_yaml(text: str, place: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse(text, "r.yaml")
    assert caught.value.where == place
    assert caught.value.hint


def test_places() -> None:
    source = parse(RECIPE, "r.yaml")
    assert source.where(("prepare", 0, "read", 1, "path")) == "r.yaml:5:15"
    assert source.where(("prepare", 0, "read", 1, "path"), key=True) == "r.yaml:5:9"
    assert source.where(("prepare", 3)) == "r.yaml:8:5"
    assert source.where(("train", "absent")) == "r.yaml:9:8"


def test_a_merged_value_is_at_the_mapping_that_merges_it() -> None:
    source = parse("a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, w: 3}\n", "r.yaml")
    assert source.data["b"]["x"] == 1
    assert source.where(("b", "x")) == "r.yaml:2:4"
    assert source.where(("b", "x"), key=True) == "r.yaml:2:4"
    assert source.where(("b", "y", "z")) == "r.yaml:1:21"
    assert source.where(("b", "w")) == "r.yaml:2:16"


def test_overrides() -> None:
    source = parse(
        RECIPE,
        "r.yaml",
        [
            "train.lr_init=1e-5",
            "train.keep=2",
            "model.size=x070-0.1b",
            "prepare.repeat-shuffle.epochs=4",
            "prepare.read.0.repeat=2",
            "prepare.3.plan.x=1",
            "prepare.encode=other",
            "name=",
        ],
    )
    assert source.data == {
        "name": "",
        "prepare": [
            {"read": [{"path": "a.jsonl", "repeat": 2}, {"path": "b.jsonl"}]},
            {"encode": "other"},
            {"repeat-shuffle": {"epochs": 4}},
            {"plan": {"x": 1}},
        ],
        "train": {"lr_init": 1e-5, "keep": 2},
        "model": {"size": "x070-0.1b"},
    }
    assert source.where(("prepare", 2, "repeat-shuffle", "epochs")) == (
        "--set prepare.repeat-shuffle.epochs=4"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x", "not key=value"),
        ("a..b=1", "not key=value"),
        ("train.lr_init.x=1", "no place 'x'"),
        ("prepare.missing.x=1", "no place 'missing'"),
        ("prepare.9.x=1", "no place '9'"),
        ("prepare.encode.vocab=v", "no place 'vocab'"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(RECIPE, "r.yaml", [override])
    assert caught.value.hint
