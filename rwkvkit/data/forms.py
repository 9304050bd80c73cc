"""How the columns of a line become the text of a document: one column, or several in a template."""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from rwkvkit.tokenizer.utf8 import END_BYTE

SEAM = END_BYTE
"""Stands between the segments of a document: tokenizers take each for a document of its own."""


class BadLine(Exception):
    """A line that cannot become a document."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Text(NamedTuple):
    """The text of a document.

    Attributes:
        content: UTF-8; the segments of a chat are joined by ``SEAM``.
        marks: a byte a segment, 1 where its tokens count in the loss; None for text that is one
            segment, of which its source says whether it counts.
    """

    content: bytes
    marks: bytes | None = None


class Form(Protocol):
    """What a source makes of a record."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""

    def render(self, record: Mapping[str, Any]) -> Text:
        """Return the text of a record.

        Raises:
            BadLine: a column is missing, or is not what it should be.
        """


@dataclass(frozen=True)
class Column:
    """A column that is the text.

    Attributes:
        name: the column.
        key: the key of the source that names it, for messages.
    """

    name: str
    key: str = "field"

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.name,)

    def render(self, record: Mapping[str, Any]) -> Text:
        """Return the column; see ``Form``."""
        return Text(utf8(self.value(record), f"field {self.name!r}"))

    def value(self, record: Mapping[str, Any]) -> str:
        """Return the column, which must be a string."""
        return string_column(record, self.name, self.key)


@dataclass(frozen=True)
class Template:
    """Text with columns in braces; two braces stand for one.

    Attributes:
        text: such as ``Question: {q} Answer: {a}``.
        key: the key of the source that holds it, for messages.

    Raises:
        ValueError: a brace is alone, a name is empty, or no column is named at all.
    """

    text: str
    key: str = "template"

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"{self.key} names no column: write one in braces, such as {{text}}")

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """Literal text, and the column after it."""
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}; a brace itself is written twice") from error
        parts = []
        for literal, name, spec, conversion in parsed:
            if spec or conversion or name == "":
                raise ValueError(f"{self.key}: braces hold the name of a column and nothing else")
            parts.append((literal, name))
        return parts

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in braces."""
        return tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def render(self, record: Mapping[str, Any]) -> Text:
        """Return the filled template; see ``Form``."""
        return Text(utf8(self.value(record), f"{self.key} filled in"))

    def value(self, record: Mapping[str, Any]) -> str:
        """Return the filled template; every column must be a string."""
        return "".join(
            literal + ("" if name is None else string_column(record, name, self.key))
            for literal, name in self._parts
        )


def field_or_template(text: str, key: str) -> Column | Template:
    """Return a template where ``text`` holds a brace, else the column of that name."""
    return Template(text, key) if "{" in text or "}" in text else Column(text, key)


def string_column(record: Mapping[str, Any], name: str, key: str) -> str:
    """Return a column that must be there and a string.

    Raises:
        BadLine: it is not.
    """
    value = column(record, name, key)
    if not isinstance(value, str):
        raise BadLine(f"field {name!r} is {json_type(value)}, not a string")
    return value


def column(record: Mapping[str, Any], name: str, key: str) -> Any:
    """Return a column that must be there.

    Raises:
        BadLine: it is not.
    """
    if name not in record:
        hint = f"the line has {listed(record)}: set '{key}' of the source"
        raise BadLine(f"no field {name!r}", hint)
    return record[name]


def listed(names: Iterable[str]) -> str:
    """Return the first names for a message."""
    return ", ".join(map(repr, list(names)[:8])) or "no fields"


def utf8(text: str, what: str) -> bytes:
    """Encode text.

    Raises:
        BadLine: it holds a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise BadLine(
            f"{what} holds a lone surrogate (\\u{surrogate:04x} at character "
            f"{error.start}), which is half of a character"
        ) from error


def json_type(value: object) -> str:
    """Name the type of a value as JSON calls it, or, as only tables hold it, as Python does."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"of the type {type(value).__name__}")
