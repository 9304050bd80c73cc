"""Find a recipe, check it against the schema, and point at every mistake."""

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rwkvkit.config import Config
from rwkvkit.data.stages import STAGES, Stage
from rwkvkit.data.text_stages import TextStage
from rwkvkit.errors import RecipeError
from rwkvkit.recipe.schema import Recipe
from rwkvkit.recipe.source import Source, parse
from rwkvkit.resources import bundled


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that ship, by name."""
    return {path.stem: path for path in sorted(bundled("pipelines").glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """Return the file that a path or the name of a bundled recipe means.

    Raises:
        RecipeError: there is no such file or name.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = bundled_recipes()
    if recipe in shipped:
        return shipped[recipe]
    if path.parts[:1] == ("pipelines",) and path.stem in shipped:
        return shipped[path.stem]
    close = _suggestion(path.stem, shipped)
    raise RecipeError(
        f"no such recipe{close} (looked in {Path.cwd()} and among the built-in recipes)",
        where=recipe,
        hint="give a path, or a name from: rwkvkit recipes",
    )


def read_recipe(path: Path) -> str:
    """Return the text of a recipe.

    Raises:
        RecipeError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot be read: {error.strerror}", where=str(path), hint="check its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError("is not UTF-8", where=str(path), hint="save it as UTF-8") from error


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a path, or the name of a recipe that ships.
        overrides: ``key.key=value`` arguments that replace or add values.

    Raises:
        RecipeError: it cannot be read, or is wrong; every mistake is named with its place.
        UsageError: an override is malformed.
    """
    path = find_recipe(recipe)
    text = read_recipe(path)
    source = parse(text, str(path), overrides, _expand_stage)
    mistakes: list[str] = []
    values = dict(source.data)
    if "prepare" in values:
        values["prepare"] = _stages(source, mistakes)
    try:
        checked = Recipe.model_validate(values)
    except ValidationError as error:
        mistakes += _explain(error, Recipe, source, (), source.data)
    if mistakes:
        raise RecipeError(
            "\n".join(mistakes), hint="rwkvkit recipes keys lists every key with its meaning"
        )
    return checked


def _expand_stage(name: str, value: Any) -> Any:
    """Turn the shorthand of the stage ``name`` into its fields; leave what is no stage alone."""
    return next((stage.expand(value) for stage in STAGES if stage.key == name), value)


def _stages(source: Source, mistakes: list[str]) -> list[Stage] | None:
    """Turn the ``prepare`` list into stages; add what is wrong with it to ``mistakes``."""
    items = source.data["prepare"]
    if not isinstance(items, list):
        mistakes.append(f"{source.where(('prepare',))}  prepare: should be a list of stages")
        return None
    known = {stage.key: stage for stage in STAGES}
    stages = []
    for index, item in enumerate(items):
        path: tuple[str | int, ...] = ("prepare", index)
        if not isinstance(item, dict) or len(item) != 1 or not isinstance(next(iter(item)), str):
            mistakes.append(
                f"{source.where(path)}  {_dotted(path)}: should be one stage, `name: settings`"
            )
            continue
        [(name, value)] = item.items()
        path = (*path, name)
        try:
            stage = known[name] if name in known else _own_stage(name, known)
        except RecipeError as error:
            mistakes.append(f"{source.where(path, key=True)}  {_dotted(path)}: {error.what}")
            continue
        try:
            stages.append(stage.model_validate(stage.expand(value)))
        except ValidationError as error:
            mistakes += _explain(error, stage, source, path, value)
        except RecipeError as error:
            mistakes.append(f"{source.where(path)}  {_dotted(path)}: {error.what}")
        except Exception as error:  # a stage of one's own may raise anything
            if name in known:
                raise
            reason = f"cannot be made: {type(error).__name__}: {error}"
            mistakes.append(f"{source.where(path, key=True)}  {_dotted(path)}: {reason}")
    return None if mistakes and not stages else stages


def _own_stage(name: str, known: Iterable[str]) -> type[Stage]:
    """Import the class that ``package.module:Class`` names; modules may lie in the working folder.

    Raises:
        RecipeError: there is none, or it is no text stage.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise RecipeError(
            f"unknown stage{_suggestion(name, known)}; stages are {', '.join(known)}, "
            "and your own as package.module:Class"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # worker processes get it too
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise RecipeError(f"cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, TextStage)):
        raise RecipeError("is no stage: it should derive from rwkvkit.data.text_stages.TextStage")
    if found.run is TextStage.run:
        raise RecipeError("does not define run(documents)")
    if not isinstance(found.version, int):
        raise RecipeError(f"its version should be an integer, not {found.version!r}")
    return found


def _explain(
    error: ValidationError,
    schema: type[Config],
    source: Source,
    prefix: tuple[str | int, ...],
    raw: Any,
) -> list[str]:
    """Return one line for each mistake: place, key, what is wrong."""
    lines = []
    details = error.errors()
    for detail in details:
        loc = detail["loc"]
        if any(other["loc"][: len(loc)] == loc and other["loc"] != loc for other in details):
            continue  # a list that is too short because of what is wrong inside it
        path = prefix + _written(loc, raw)
        missing = detail["type"] == "missing"
        where = source.where(path, key=detail["type"] == "extra_forbidden")
        shown = (*path, loc[-1]) if missing else path
        lines.append(f"{where}  {_dotted(shown) or 'recipe'}: {_reason(detail, schema)}")
    return lines


def _reason(detail: ErrorDetails, schema: type[Config]) -> str:
    """Say what is wrong with one value, in a recipe's words."""
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(str(detail['loc'][-1]), _keys(schema, detail['loc']))}"
    if kind == "missing":
        return "this key is required"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"should match {detail['ctx']['pattern']}, not {value!r}"
    if kind in ("tuple_type", "list_type"):
        return f"should be a list, not {value!r}"
    if kind == "too_short":
        return "the list is empty"
    if kind in ("bool_type", "bool_parsing"):
        return f"should be true or false, not {value!r}"
    if kind in ("model_type", "dict_type"):
        return f"should be a mapping of keys to values, not {value!r}"
    message = detail["msg"].removeprefix("Input ")
    shown = "" if isinstance(value, dict | list | Config) else f", not {value!r}"
    return message[0].lower() + message[1:] + shown


def _keys(schema: Any, loc: Iterable[str | int]) -> list[str]:
    """Return the keys allowed where ``loc`` ends."""
    owners: list[Any] = [schema]
    for part in list(loc)[:-1]:
        inner: list[Any] = []
        for owner in owners:
            fields = getattr(owner, "model_fields", {})
            inner += settings_classes(fields[part].annotation) if part in fields else [owner]
        owners = inner
    return sorted({key for owner in owners for key in getattr(owner, "model_fields", {})})


def settings_classes(annotation: Any) -> list[Any]:
    """Return the settings classes inside an annotation such as ``list[A | B] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for part in get_args(annotation) for found in settings_classes(part)]


def _written(loc: tuple[str | int, ...], raw: Any) -> tuple[str | int, ...]:
    """Drop the parts of a location that the recipe does not spell out (shorthand, unions)."""
    path: list[str | int] = []
    for part in loc:
        inside = (isinstance(raw, dict) and part in raw) or (
            isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        )
        if inside:
            raw = raw[part]
            path.append(part)
    return tuple(path)


def _dotted(path: Iterable[str | int]) -> str:
    """Write a path as ``prepare[0].read.field``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
