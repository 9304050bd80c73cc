"""Read YAML 1.2 into plain values, and remember where each one stands."""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt

from rwkvkit.errors import RecipeError, UsageError

Path = Sequence[str | int]
"""The keys and indices that lead to a value."""


@dataclass(frozen=True)
class Source:
    """A recipe's text as values.

    Attributes:
        name: the file's name, for messages.
        data: dicts, lists, strings, numbers, booleans and None.
        overrides: paths that ``--set`` has written, with the argument that did.
    """

    name: str
    data: Any
    overrides: dict[tuple[str | int, ...], str]
    _tree: Any

    def where(self, path: Path, *, key: bool = False) -> str:
        """Return ``file:line:column`` of a value, or of its key, or the ``--set`` that gave it."""
        for length in range(len(path), 0, -1):
            if tuple(path[:length]) in self.overrides:
                return f"--set {self.overrides[tuple(path[:length])]}"
        node, line, column = self._tree, 0, 0
        for depth, part in enumerate(path):
            if isinstance(node, CommentedMap) and part in node:
                at_key = node[part] is None or (key and depth == len(path) - 1)
                with contextlib.suppress(KeyError):  # a key that a merge (<<) brought: no place
                    line, column = node.lc.key(part) if at_key else node.lc.value(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                break
            node = node[part]
        return f"{self.name}:{line + 1}:{column + 1}"


def parse(
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    expand: Callable[[str, Any], Any] = lambda stage, value: value,
) -> Source:
    """Read a recipe's text.

    YAML 1.2: ``1e-4`` is a number, ``no`` and ``12:30:00`` and dates are strings, ``012`` is 12,
    and a key that stands twice is an error.

    Args:
        text: the YAML.
        name: the file's name, for messages.
        overrides: ``key.key=value`` arguments; a stage of ``prepare`` goes by its name or number.
        expand: turns the shorthand of a stage into its fields, for an override inside it.

    Raises:
        RecipeError: the text is no YAML, or no mapping.
        UsageError: an override is malformed.
    """
    tree = _load(text, name)
    if not isinstance(tree, CommentedMap):
        raise RecipeError(
            "a recipe is a mapping of keys to values",
            where=f"{name}:1:1",
            hint="start from a built-in recipe: rwkvkit recipes",
        )
    data = _plain(tree, name)
    _name_stages(data)
    written = {}
    for override in overrides:
        written[_override(data, override, expand)] = override
    _name_stages(data)
    return Source(name, data, written, tree)


def _name_stages(data: dict[str, Any]) -> None:
    """Write a stage that stands as its bare name as a mapping without settings."""
    if isinstance(data.get("prepare"), list):
        data["prepare"] = [{x: None} if isinstance(x, str) else x for x in data["prepare"]]


def _load(text: str, name: str) -> Any:
    if text.startswith("%"):
        raise RecipeError(
            "recipes are YAML 1.2 and take no directive",
            where=f"{name}:1:1",
            hint="remove the lines that start with %",
        )
    yaml = YAML(typ="rt")
    yaml.constructor.add_constructor("tag:yaml.org,2002:timestamp", _as_string)
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = re.sub(r"\s+", " ", error.problem or error.context or "not YAML")
        hint = "fix the YAML at this place" + (", with spaces" if "\\t" in problem else "")
        raise RecipeError(problem, where=where, hint=hint) from error
    except YAMLError as error:
        raise RecipeError(f"not YAML: {error}", where=name, hint="save it as UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 1000 brackets deep
        raise RecipeError(
            f"not YAML for a recipe: {error}", where=name, hint="shorten it"
        ) from error


def _as_string(constructor: Any, node: ScalarNode) -> str:
    return str(node.value)


def _plain(value: Any, name: str, above: tuple[int, ...] = ()) -> Any:
    """Turn what ruamel made into plain values; ``above`` holds what a value is part of."""
    if isinstance(value, CommentedMap | CommentedSeq):
        if id(value) in above:
            raise RecipeError(
                "a value contains itself", where=name, hint="remove the alias (*name) inside it"
            )
        if value.tag.value is not None:
            raise _tagged(value, name)
        above = (*above, id(value))
    if isinstance(value, CommentedMap):
        return {
            str(key) if isinstance(key, str) else key: _plain(item, name, above)
            for key, item in value.items()
        }
    if isinstance(value, CommentedSeq):
        return [_plain(item, name, above) for item in value]
    if isinstance(value, TaggedScalar):
        raise _tagged(value, name)
    if isinstance(value, ScalarBoolean):
        return bool(value)
    if isinstance(value, ScalarFloat):
        return float(value)
    if isinstance(value, ScalarInt):
        return int(value)
    return str(value) if isinstance(value, str) else value


def _tagged(value: Any, name: str) -> RecipeError:
    return RecipeError(
        f"recipes use no tags such as {value.tag.value}", where=name, hint="remove it"
    )


def _override(
    data: dict[str, Any], override: str, expand: Callable[[str, Any], Any]
) -> tuple[str | int, ...]:
    """Write one ``key.key=value`` into ``data`` and return the path it went to."""
    dotted, equals, text = override.partition("=")
    parts = dotted.split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"{override!r} is not key=value",
            where="--set",
            hint="for example --set train.micro_bsz=4",
        )
    where = f"--set {override}"
    value = _plain(_load(text, where), where) if text else ""
    node: Any = data
    path: list[str | int] = []
    for depth, part in enumerate(parts):
        key: str | int = part
        if isinstance(node, list):
            key = _index(node, part, override)
            path.append(key)
            if part != str(key):
                node, key = node[key], part
                path.append(part)
        elif isinstance(node, dict):
            path.append(part)
        else:
            raise _no_place(override, part)
        if depth == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and not isinstance(node.get(key), dict | list):
            whole = expand(part, node.get(key)) if path[0] == "prepare" else node.get(key)
            node[key] = {} if whole is None else whole
        node = node[key]
    return tuple(path)


def _index(stages: list[Any], part: str, override: str) -> int:
    """Return the index that a number or a stage's name means in a list."""
    if part.isdecimal() and int(part) < len(stages):
        return int(part)
    for index, item in enumerate(stages):
        if isinstance(item, dict) and part in item:
            return index
    raise _no_place(override, part)


def _no_place(override: str, part: str) -> UsageError:
    return UsageError(
        f"the recipe has no place {part!r}",
        where=f"--set {override}",
        hint="name keys as in the recipe, joined by dots; a stage by its name or number",
    )
