"""Which files a recipe's sources name, in the order they are read."""

import glob
import os
import re
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rwkvkit.config import Config
from rwkvkit.data.chat import Chat, ChatForm, Loss
from rwkvkit.data.forms import Field as OneField
from rwkvkit.data.forms import Form, Template
from rwkvkit.errors import DataError, RecipeError

Compression = Literal["gzip", "zstd"]
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


class Source(Config):
    """Files with documents, and how often each document stands in a pass."""

    path: str | None = None
    """A file, a folder (searched through), or a glob; ``**`` spans folders."""

    builtin: Literal["python-stdlib"] | None = None
    """Instead of a path: ``python-stdlib``, the sources of the running Python's library."""

    repeat: Annotated[int, Field(ge=1)] = 1
    """How many times each document stands in each pass, as if its lines were repeated."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the documents to take, chosen by the seed."""

    field: str = "text"
    """The field of a jsonl line that holds the text."""

    template: str | None = None
    """Instead of a field: text with fields in braces, ``"Q: {q} A: {a}"``; ``{{`` is a brace."""

    chat: Chat | None = None
    """Instead of a field: the line is a conversation; a bare name is that of its messages."""

    loss: Literal["all", "assistant", "none"] | None = None
    """Which tokens count in the loss: ``assistant`` for a chat, else ``all``, unless given. If any
    source has another value than ``all``, the dataset has a mask."""

    format: Literal["jsonl", "text"] | None = None
    """``jsonl``: a JSON object a line; ``text``: a document a file. Default: by the suffix."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.builtin is None):
            raise ValueError("a source has either 'path' or 'builtin'")
        if self.builtin and self.format == "jsonl":
            raise ValueError("a builtin source has the format 'text'")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> "Source":
        given = {"field", "template", "chat"} & {
            key for key in self.model_fields_set if getattr(self, key) is not None
        }
        if len(given) > 1:
            raise ValueError(f"a source has only one of {' and '.join(sorted(given))}")
        if self.loss == "assistant" and self.chat is None:
            raise ValueError("loss: assistant needs a chat")
        if self.format == "text" and given:
            raise ValueError(f"format: text has no fields, so no {given.pop()}")
        _ = self.form
        return self

    @property
    def form(self) -> Form:
        """What it makes of a line."""
        if self.chat is not None:
            return ChatForm(self.chat, self.loss or "assistant")
        return OneField(self.field) if self.template is None else Template(self.template)

    @property
    def counted(self) -> Loss:
        """Which of its tokens count in the loss."""
        return self.loss or ("assistant" if self.chat else "all")

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn the shorthand, a bare path, into fields."""
        if isinstance(value, dict) and "chat" in value:
            return {**value, "chat": Chat.expand(value["chat"])}
        return {"path": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: where it is, as the recipe gives it.
        name: how messages and the manifest call it; the path, or for a builtin source the path
            below a name that is the same on every machine.
        source: index of its source in the recipe.
        number: index of the file within its source.
        size: bytes on disk.
        format: ``jsonl`` or ``text``.
        compression: ``gzip``, ``zstd`` or None.
        form: what its lines make, for ``jsonl``.
        loss: which of its tokens count in the loss.
    """

    path: str
    name: str
    source: int
    number: int
    size: int
    format: Literal["jsonl", "text"]
    compression: Compression | None
    form: Form
    loss: Loss


def find_files(
    sources: Sequence[Source], exclude: Collection[str] = frozenset()
) -> list[InputFile]:
    """Return the files of all sources, in the order of the sources, naturally sorted in each.

    Args:
        sources: where to look.
        exclude: real paths of files to leave out; a build's own output may lie among its inputs.

    Raises:
        DataError: a source names no file, or a file cannot be reached.
        RecipeError: the format of a file must be told.
    """
    return [
        file for number, source in enumerate(sources) for file in _find(source, number, exclude)
    ]


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts ``part-2`` before ``part-10``."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def _find(source: Source, number: int, exclude: Collection[str]) -> list[InputFile]:
    if source.builtin:
        found = _standard_library()
    else:
        assert source.path is not None
        paths = [path for path in _matches(source) if os.path.realpath(path) not in exclude]
        found = [(path, path) for path in sorted(paths, key=natural_key)]
    if not found:
        raise DataError(
            "no file matches" if source.path else "the standard library has no source files here",
            where=source.path or source.builtin,
            hint=f"the working folder is {Path.cwd()}",
        )
    return [
        InputFile(
            path=path,
            name=name,
            source=number,
            number=i,
            size=_size(path),
            format="text" if source.builtin else _format(path, source),
            compression=_COMPRESSIONS.get(Path(path).suffix),
            form=source.form,
            loss=source.counted,
        )
        for i, (path, name) in enumerate(found)
    ]


def _matches(source: Source) -> Iterator[str]:
    assert source.path is not None
    if Path(source.path).is_dir():
        for folder, folders, names in os.walk(source.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if not name.startswith(".") and (source.format or _guessed(name)):
                    yield str(Path(folder) / name)
    elif Path(source.path).exists():
        yield source.path
    else:
        # Path.glob takes no absolute patterns before Python 3.13.
        for path in glob.glob(source.path, recursive=True):  # noqa: PTH207
            if not Path(path).is_dir():
                yield path


def _guessed(path: str) -> Literal["jsonl"] | None:
    suffix = Path(path).suffix
    plain = path.removesuffix(suffix) if suffix in _COMPRESSIONS else path
    return "jsonl" if plain.endswith(_JSONL_SUFFIXES) else None


def _format(path: str, source: Source) -> Literal["jsonl", "text"]:
    found = source.format or _guessed(path)
    if found is None:
        raise RecipeError(
            "the suffix does not tell the format of this file",
            where=path,
            hint="add 'format: text' (one document a file) or 'format: jsonl' to its source",
        )
    return found


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error


def _standard_library() -> list[tuple[str, str]]:
    """Return path and name of the standard library's UTF-8 sources that are no tests."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not _NOT_STDLIB.intersection(path.relative_to(root).parts)
    )
    return [
        (str(root / name), f"python-stdlib/{name}")
        for name in sorted(names, key=natural_key)
        if _is_text(root / name)
    ]


def _is_text(path: Path) -> bool:
    try:
        content = path.read_bytes()
        content.decode()
    except (OSError, UnicodeDecodeError):
        return False
    return bool(content) and not content.startswith(b"\xef\xbb\xbf")
