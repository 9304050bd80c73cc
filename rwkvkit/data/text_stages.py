"""Stages between read and encode, the user's own among them: documents in, documents out.

A stage of one's own is a class that derives from ``TextStage``; a recipe names it as
``package.module:Class``. docs/stages.md shows one.
"""

from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from rwkvkit.data.documents import Documents
from rwkvkit.data.forms import SEAM
from rwkvkit.data.stage import Stage
from rwkvkit.errors import DataError


class Segment(NamedTuple):
    """A stretch of text that no token spans the end of.

    Attributes:
        text: the text.
        counted: whether its tokens count in the loss.
    """

    text: str
    counted: bool


@dataclass(frozen=True)
class Document:
    """A document on its way through text stages.

    Attributes:
        segments: its text; one segment, or for a conversation several.
        file: index of its file in the list of inputs.
        position: byte offset of its line in the file, or number of its row.
    """

    segments: tuple[Segment, ...]
    file: int
    position: int

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments)

    def with_text(self, text: str) -> "Document":
        """Return the document with another text.

        Raises:
            ValueError: it has several segments, so what counts in the loss would be lost.
        """
        if len(self.segments) != 1:
            raise ValueError("a conversation has several segments: change each with map_segments")
        return self.map_segments(lambda _: text)

    def map_segments(self, change: Callable[[str], str]) -> "Document":
        """Return the document with each segment's text changed by a function."""
        changed = tuple(Segment(change(text), counted) for text, counted in self.segments)
        return replace(self, segments=changed)


class TextStage(Stage):
    """A stage that maps documents to documents; ``version`` and fields are part of a fingerprint.

    ``run`` is called once for each chunk of the input, in any process and order. The result must
    depend on the documents alone, never on which of them come together or what came before, or the
    dataset would depend on the number of workers.
    """

    takes: ClassVar[str | None] = "text"
    gives: ClassVar[str] = "text"
    repeatable: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "key" not in cls.__dict__:
            cls.key = f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def run(self, documents: Iterable[Document]) -> Iterable[Document]:
        """Yield documents: the given ones, changed ones, several of one, or fewer.

        Documents are changed with ``with_text`` or ``map_segments``, so that they keep the position
        that orders and names them.
        """
        raise NotImplementedError


def run_stage(stage: TextStage, documents: Documents, where: str) -> tuple[Documents, int]:
    """Return what a stage makes of the documents of a chunk, and how many it dropped.

    Raises:
        DataError: the stage failed, or yielded what is no document.
    """
    given = set(zip(documents.files, documents.offsets, strict=True))
    try:
        after = list(stage.run(_unpacked(documents)))
        packed = _packed(after, documents, given)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"the stage {stage.key} failed: {type(error).__name__}: {error}",
            where=where,
            hint="fix the stage; --set changes its settings for a try",
        ) from error
    left = {(document.file, document.position) for document in after}
    return packed, len(given - left)


def _unpacked(documents: Documents) -> Iterator[Document]:
    marks = documents.marks or [b"\1"] * len(documents.texts)
    for content, mark, file, offset in zip(
        documents.texts, marks, documents.files, documents.offsets, strict=True
    ):
        parts = content.split(SEAM)
        segments = [
            Segment(part.decode(), bool(flag)) for part, flag in zip(parts, mark, strict=True)
        ]
        yield Document(tuple(segments), int(file), int(offset))


def _packed(
    after: list[Document], before: Documents, given: Container[tuple[int, int]]
) -> Documents:
    for document in after:
        if not isinstance(document, Document):
            raise TypeError(f"it yielded {type(document).__name__}, not a Document")
        if not document.segments:
            raise ValueError("it yielded a document without segments")
        if before.marks is None and len(document.segments) > 1:
            raise ValueError("only a conversation has several segments")
        if (document.file, document.position) not in given:
            raise ValueError("it yielded a document that it did not make from one of the given")
    return Documents(
        texts=[SEAM.join([part.text.encode() for part in d.segments]) for d in after],
        marks=None
        if before.marks is None
        else [bytes([bool(part.counted) for part in d.segments]) for d in after],
        files=[document.file for document in after],
        offsets=[document.position for document in after],
        rejects=before.rejects,
        n_lines=before.n_lines,
    )
