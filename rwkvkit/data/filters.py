"""The stage ``filter``: which documents are good enough, by rules that know no language."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from rwkvkit.data.text_stages import Document, TextStage

Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[int, Field(ge=0)]


class _Letters(dict[int, int | None]):
    """A table for ``str.translate`` that leaves letters and the marks on them."""

    def __missing__(self, code: int) -> int | None:
        kept = code if unicodedata.category(chr(code))[0] in "LM" else None
        self[code] = kept
        return kept


_LETTERS = _Letters()


class Filter(TextStage):
    """Leave out documents that break a rule; the manifest counts them."""

    key: ClassVar[str] = "filter"
    version: ClassVar[int] = 2  # 1 dropped documents just at the limit of repeated lines

    min_chars: Limit | None = None
    """Least number of characters of a document."""

    max_chars: Limit | None = None
    """Largest number of characters."""

    min_tokens: Limit | None = None
    """Least number of tokens, the end of the document included; checked after encoding."""

    max_tokens: Limit | None = None
    """Largest number of tokens."""

    require: str | None = None
    """A Python regular expression that must be found in the text."""

    forbid: str | None = None
    """A Python regular expression that must not be found in it."""

    min_letters: Share | None = None
    """Least share of letters, of any script, among the characters that are not white space."""

    max_repeated_lines: Share | None = None
    """Largest share of lines, not counting blank ones, that repeat an earlier one."""

    @field_validator("require", "forbid")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _some_rule(self) -> "Filter":
        if not self.settings():
            raise ValueError("a filter needs a rule, such as min_chars: 100")
        for unit in ("chars", "tokens"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} {least} is more than max_{unit} {most}")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the rules that are given."""
        return self.model_dump(mode="json", exclude_none=True)

    def run(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents whose text breaks no rule; those on tokens come after encoding."""
        return (document for document in documents if self.keeps(document.text))

    def keeps(self, text: str) -> bool:
        """Say whether a text breaks no rule."""
        return (
            (self.min_chars is None or len(text) >= self.min_chars)
            and (self.max_chars is None or len(text) <= self.max_chars)
            and (self.require is None or re.search(self.require, text) is not None)
            and (self.forbid is None or re.search(self.forbid, text) is None)
            and (self.min_letters is None or share_of_letters(text) >= self.min_letters)
            and (
                self.max_repeated_lines is None
                or share_of_repeated_lines(text) <= self.max_repeated_lines
            )
        )

    def keeps_size(self, n_tokens: Any) -> Any:
        """Say whether a size in tokens (or each of an array of sizes) breaks no rule."""
        least = 0 if self.min_tokens is None else self.min_tokens
        most = n_tokens if self.max_tokens is None else self.max_tokens
        return (n_tokens >= least) & (n_tokens <= most)


def share_of_letters(text: str) -> float:
    """Return which share of the characters that are no white space are letters; 0 of none."""
    shown = sum(map(len, text.split()))
    return len(text.translate(_LETTERS)) / shown if shown else 0.0


def share_of_repeated_lines(text: str) -> float:
    """Return which share of the lines that are not blank stood before; 0 of none."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return (len(lines) - len(set(lines))) / len(lines) if lines else 0.0
