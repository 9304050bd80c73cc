"""What a recipe says of a source: where documents are, and what of a line they are."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rwkvkit.config import Config
from rwkvkit.data.chat import Chat, ChatForm, Loss
from rwkvkit.data.forms import Column, Form, Template

Format = Literal["jsonl", "text", "parquet", "arrow"]


class DatasetName(Config):
    """A dataset of the Hugging Face hub, read row by row without storing it first.

    It is taken as unchanged as long as this is: name a revision to be sure of it.
    """

    name: Annotated[str, Field(min_length=1)]
    """Its name, such as ``roneneldan/TinyStories``, or a local folder with its files."""

    subset: str | None = None
    """Which of its configurations."""

    split: str = "train"
    """Which of its splits."""

    revision: str | None = None
    """A commit, tag or branch of it."""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn the shorthand, a bare name, into fields."""
        return {"name": value} if isinstance(value, str) else value

    def __str__(self) -> str:
        subset = f"/{self.subset}" if self.subset else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"dataset {self.name}{subset}:{self.split}{revision}"


class Source(Config):
    """Where documents are, which part of a line they are, and how often each is in a pass."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """A file, a folder (searched through), or a glob; ``**`` spans folders. With a protocol
    (``s3://``, ``gs://``, ``https://``) on another machine."""

    dataset: DatasetName | None = None
    """Instead of a path: a dataset of the Hugging Face hub; a bare word is its name."""

    builtin: Literal["python-stdlib"] | None = None
    """Instead of a path: ``python-stdlib``, the sources of the running Python's library."""

    repeat: Annotated[int, Field(ge=1)] = 1
    """How many times each document is in each pass, as if its lines were repeated."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the documents to take, a pseudo-random choice that follows from ``seed``."""

    field: str = "text"
    """The field of a line, or the column of a table, that holds the text."""

    template: str | None = None
    """Instead of a field: text with fields in braces, ``"Q: {q} A: {a}"``; ``{{`` is a brace."""

    chat: Chat | None = None
    """Instead of a field: the line is a conversation; a bare name is the field of its messages."""

    loss: Loss | None = None
    """Which tokens count in the loss: ``assistant`` for a chat, else ``all``, unless given. If any
    source has another value than ``all``, the dataset has a mask."""

    format: Format | None = None
    """``jsonl``: a JSON object a line; ``text``: a document a file; ``parquet`` and ``arrow``: a
    row of the table. Default: by the suffix; ``.txt`` is text, where no field is asked for."""

    separator: Annotated[str, Field(min_length=1)] | None = None
    """For text: what separates documents, such as ``"\\n\\n\\n"``, if a file holds several."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        origins = [self.path, self.dataset, self.builtin]
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("a source has one of 'path', 'dataset' and 'builtin'")
        if self.builtin and self.format not in (None, "text"):
            raise ValueError("a builtin source has the format 'text'")
        if self.dataset and self.format:
            raise ValueError("a dataset has no 'format'")
        if self.separator and (not self.path or self.format not in (None, "text")):
            raise ValueError("a separator is for files of the format 'text'")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> "Source":
        given = self._given
        if len(given) > 1:
            raise ValueError(f"a source has only one of {' and '.join(sorted(given))}")
        if self.loss == "assistant" and self.chat is None:
            raise ValueError("loss: assistant needs a chat")
        if (self.format == "text" or self.separator or self.builtin) and given:
            raise ValueError(f"text files have no fields, so no {given.pop()}")
        _ = self.form
        return self

    @property
    def _given(self) -> set[str]:
        told = {key for key in self.model_fields_set if getattr(self, key) is not None}
        return told & {"field", "template", "chat"}

    @property
    def asks_for_fields(self) -> bool:
        """Whether it says what of a line is the text, so that it is not of text files."""
        return bool(self._given)

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.path or self.builtin or self.dataset)

    @property
    def form(self) -> Form:
        """What it makes of a line."""
        if self.chat is not None:
            return ChatForm(self.chat, self.loss or "assistant")
        return Column(self.field) if self.template is None else Template(self.template)

    @property
    def counted(self) -> Loss:
        """Which of its tokens count in the loss."""
        return self.loss or ("assistant" if self.chat else "all")

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn the shorthand, a bare path, into fields."""
        if isinstance(value, dict):
            inner = {"chat": Chat.expand, "dataset": DatasetName.expand}
            return {key: inner[key](x) if key in inner else x for key, x in value.items()}
        return {"path": value} if isinstance(value, str) else value
