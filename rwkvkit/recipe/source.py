"""Read YAML 1.2 into plain values, and remember where each one stands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
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
                at_key = key and depth == len(path) - 1
                line, column = node.lc.key(part) if at_key else node.lc.value(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                break
            node = node[part]
        return f"{self.name}:{line + 1}:{column + 1}"


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> Source:
    """Read a recipe's text.

    YAML 1.2: ``1e-4`` is a number, ``no`` and ``12:30:00`` and dates are strings, ``012`` is 12,
    and a key that stands twice is an error.

    Args:
        text: the YAML.
        name: the file's name, for messages.
        overrides: ``key.key=value`` arguments; a stage of ``prepare`` goes by its name or number.

    Raises:
        RecipeError: the text is no YAML, or no mapping.
        UsageError: an override is malformed.
    """
    tree = _load(text, name)
    if not isinstance(tree, CommentedMap):
        raise RecipeError(
            "a recipe is a mapping of keys to values",
            where=f"{name}:1:1",
            hint="start from one that ships: rwkvkit recipes",
        )
    data = _plain(tree)
    if isinstance(data.get("prepare"), list):
        # A stage without settings may stand as its bare name.
        data["prepare"] = [{x: None} if isinstance(x, str) else x for x in data["prepare"]]
    written = {}
    for override in overrides:
        written[_override(data, override)] = override
    return Source(name, data, written, tree)


def _load(text: str, name: str) -> Any:
    yaml = YAML(typ="rt")
    yaml.constructor.add_constructor("tag:yaml.org,2002:timestamp", _as_string)
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = re.sub(r"\s+", " ", error.problem or error.context or "not YAML")
        raise RecipeError(problem, where=where, hint="mend the YAML at this place") from error
    except YAMLError as error:
        raise RecipeError(f"not YAML: {error}", where=name, hint="save it as UTF-8 text") from error


def _as_string(constructor: Any, node: ScalarNode) -> str:
    return str(node.value)


def _plain(value: Any) -> Any:
    if isinstance(value, CommentedMap):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, CommentedSeq):
        return [_plain(item) for item in value]
    if isinstance(value, ScalarBoolean):
        return bool(value)
    if isinstance(value, ScalarFloat):
        return float(value)
    if isinstance(value, ScalarInt):
        return int(value)
    return str(value) if isinstance(value, str) else value


def _override(data: dict[str, Any], override: str) -> tuple[str | int, ...]:
    """Write one ``key.key=value`` into ``data`` and return the path it went to."""
    dotted, equals, text = override.partition("=")
    parts = dotted.split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"{override!r} is not key=value",
            where="--set",
            hint="for example --set train.micro_bsz=4",
        )
    value = _plain(_load(text, f"--set {override}")) if text else ""
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
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
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
