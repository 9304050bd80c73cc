"""Every key of a recipe with its meaning, from the schema's own docstrings."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rwkvkit.config import Config
from rwkvkit.data.stages import STAGES
from rwkvkit.recipe.load import settings_classes
from rwkvkit.recipe.schema import ModelSpec, Recipe, SampleSpec
from rwkvkit.train.config import TrainConfig


def reference() -> str:
    """Return Markdown: a table of keys for each part of a recipe."""
    parts = [_section("The recipe", Recipe)]
    for stage in STAGES:
        parts.append(_section(f"prepare: {stage.key}", stage))
        parts += _inner_sections(f"prepare: {stage.key}", stage)
    parts.append(_section("model", ModelSpec))
    parts.append(_section("train", TrainConfig))
    parts += _inner_sections("train", TrainConfig)
    parts.append(_section("sample", SampleSpec))
    return "\n".join(parts)


def _inner_sections(title: str, schema: type[Config]) -> list[str]:
    """Return a section for each class of settings within a schema, and for those within them."""
    parts = []
    for name, field in schema.model_fields.items():
        for inner in settings_classes(field.annotation):
            own = f"{title}: {'a source' if name == 'sources' else name}"
            parts += [_section(own, inner), *_inner_sections(own, inner)]
    return parts


def _section(title: str, schema: type[Config]) -> str:
    summary = (schema.__doc__ or "").strip().split("\n\n")[0].replace("``", "`")
    rows = [
        f"| `{name}` | {kind} | {default} | {text} |" for name, kind, default, text in _rows(schema)
    ]
    head = ["| key | value | unless given | meaning |", "|---|---|---|---|"] if rows else []
    return "\n".join([f"## {title}", "", " ".join(summary.split()), "", *head, *rows, ""])


def _rows(schema: type[Config]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema.model_fields.items():
        text = " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")
        yield name, _kind(field.annotation), _default(field), text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, Config) or value in (None, "", [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`"


def _kind(annotation: Any) -> str:
    """Name a type as a person who writes YAML would."""
    plain = {int: "integer", float: "number", str: "string", bool: "true or false"}
    if annotation in plain:
        return plain[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in inner if part is not type(None))
    if origin in (list, tuple):
        return "list"
    return "string or mapping" if hasattr(annotation, "expand") else "mapping"
