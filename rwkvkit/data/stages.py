"""The stages of ``prepare``: each one typed class, its fields the keys of the recipe.

A recipe's ``prepare`` is a list of them. What a stage takes from the one before it and gives to the
next is declared, so a chain can be checked before anything runs (``chain.check_chain``).
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rwkvkit.config import Config
from rwkvkit.data.filters import Filter
from rwkvkit.data.finding import find_files
from rwkvkit.data.inputs import InputFile
from rwkvkit.data.prime import coverage_warning, magic_prime
from rwkvkit.data.sources import Source
from rwkvkit.data.stage import Stage

if TYPE_CHECKING:
    from rwkvkit.tokenizer.text import Tokenizer


class Read(Stage):
    """Read documents from jsonl, text and table files, and from datasets by name."""

    key: ClassVar[str] = "read"
    gives: ClassVar[str] = "text"

    sources: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    """Where the documents come from, in this order."""

    on_error: Literal["stop", "skip"] = "stop"
    """A bad line ends the build (``stop``), or goes to PREFIX.rejects.jsonl (``skip``)."""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn a source or a list of sources into fields; a bare path is a source.

        Beside the keys of a single source the stage's own may stand: ``{path: …, on_error: skip}``.
        """
        if not isinstance(value, dict):
            value = {"sources": value}
        elif "sources" not in value:
            own = {key: item for key, item in value.items() if key in cls.model_fields}
            value = {"sources": {k: v for k, v in value.items() if k not in own}, **own}
        sources = value["sources"]
        if not isinstance(sources, list | tuple):
            sources = [sources]
        return {**value, "sources": [Source.expand(source) for source in sources]}

    @property
    def masked(self) -> bool:
        """Whether some tokens do not count in the loss, so that the output has a mask."""
        return any(source.counted != "all" for source in self.sources)

    def files(
        self,
        exclude: Collection[str] = frozenset(),
        skipped: dict[int, list[str]] | None = None,
    ) -> list[InputFile]:
        """Return the files to read, in order; see ``find_files``.

        Raises:
            DataError: a source names no file.
            RecipeError: a file's format must be told.
        """
        return find_files(self.sources, exclude, skipped)

    def summary(self) -> str:
        """Name the sources."""
        names = [
            f"{source.name}{f' x{source.repeat}' if source.repeat > 1 else ''}"
            for source in self.sources
        ]
        return ", ".join(names) + (", skipping bad lines" if self.on_error == "skip" else "")


class Encode(Stage):
    """Turn each document into token ids, with the id that ends documents after it."""

    key: ClassVar[str] = "encode"
    takes: ClassVar[str | None] = "text"
    gives: ClassVar[str] = "tokens"
    shorthand: ClassVar[str | None] = "tokenizer"

    tokenizer: str = "world"
    """``world``, the vocabulary of the RWKV models, or the path of a ``tokenizer.json``."""

    vocab: str | None = None
    """For ``world``: a vocabulary file, if not the one that the package ``rwkv`` carries."""

    end: str | int | None = None
    """For a ``tokenizer.json``: the token that ends a document, or its id. Default: its
    ``eos_token``, ``<|endoftext|>`` or ``</s>``, else 0 if that is a special token."""

    verify: Literal["sample", "full"] = "sample"
    """``world`` checks the length of every document against its tokens, and decodes a sample;
    ``full`` decodes every document, with any tokenizer, and compares the text."""

    @model_validator(mode="after")
    def _known(self) -> "Encode":
        if self.tokenizer != "world" and not self.tokenizer.endswith(".json"):
            raise ValueError("a tokenizer is 'world' or the path of a tokenizer.json")
        if self.tokenizer != "world" and self.vocab:
            raise ValueError("vocab is for the tokenizer 'world'")
        if self.tokenizer == "world" and self.end is not None:
            raise ValueError("end is for a tokenizer.json; 'world' ends documents with 0")
        return self

    def load(self) -> "Tokenizer":
        """Return the tokenizer, as its files are now.

        Raises:
            DataError, SetupError: the vocabulary is damaged or missing.
            RecipeError: it lacks the token that is to end documents.
        """
        from rwkvkit.tokenizer.text import kept_tokenizer

        return kept_tokenizer(self.file, self.end)

    @property
    def file(self) -> str | None:
        """The file of the vocabulary, None for that of the World models."""
        return self.vocab if self.tokenizer == "world" else self.tokenizer

    def settings(self) -> dict[str, Any]:
        """Return the vocabulary's content instead of its path."""
        tokenizer = self.load()
        if self.tokenizer == "world":
            return {"tokenizer": self.tokenizer, "vocabulary": tokenizer.fingerprint}
        return {
            "tokenizer": "tokenizer.json",
            "vocabulary": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end": tokenizer.end_id,
        }

    def summary(self) -> str:
        """Name the vocabulary."""
        if self.tokenizer == "world":
            return self.tokenizer + (f" with {self.vocab}" if self.vocab else "")
        from rwkvkit.tokenizer.huggingface import HuggingFaceTokenizer

        found = self.load()
        assert isinstance(found, HuggingFaceTokenizer)
        return (
            f"{self.tokenizer}, {found.vocab_size:,} ids in {found.dtype.name}, "
            f"documents end with {found.end_token!r} ({found.end_id})"
        )


class Dedup(Stage):
    """Keep only the first of documents with the same content."""

    key: ClassVar[str] = "dedup"
    takes: ClassVar[str | None] = "text"
    gives: ClassVar[str] = "text"

    def summary(self) -> str:
        """Say what stays."""
        return "of equal documents only the first stays"


class Split(Stage):
    """Put a share of the documents into PREFIX-val.bin and .idx instead, each once, unshuffled.

    The content of a document decides, so equal documents are on the same side.
    """

    key: ClassVar[str] = "split"
    takes: ClassVar[str | None] = "tokens"
    gives: ClassVar[str] = "tokens"
    shorthand: ClassVar[str | None] = "validation"

    validation: Annotated[float, Field(gt=0, lt=1)]
    """Share of the documents, such as 0.01."""

    def summary(self) -> str:
        """Say how large the share is."""
        return f"{self.validation:.4g} of the documents for validation"


class RepeatShuffle(Stage):
    """Write the documents pass after pass, each pass in a fresh order."""

    key: ClassVar[str] = "repeat-shuffle"
    takes: ClassVar[str | None] = "tokens"
    gives: ClassVar[str] = "tokens"
    shorthand: ClassVar[str | None] = "epochs"

    epochs: Annotated[int, Field(ge=1)] = 1
    """How many passes the corpus holds."""

    shuffle: bool | Literal["reference"] = True
    """Shuffle each pass; ``false`` keeps the order of the sources, ``reference`` shuffles as
    RWKV-LM's make_data.py does for the seed, in memory."""

    seed: int | None = None
    """Seed of the shuffle; the recipe's own if not given."""

    def settings(self) -> dict[str, Any]:
        """Leave out the seed: the manifest holds the one that counted."""
        return self.model_dump(mode="json", exclude={"seed"})

    def summary(self) -> str:
        """Say how many passes and in which order."""
        each = "each " if self.epochs > 1 else ""
        order = f"{each}in a fresh order" if self.shuffle else "in the order of the sources"
        if self.shuffle == "reference":
            order = "shuffled as the reference does"
        return f"{self.epochs} {'pass' if self.epochs == 1 else 'passes'}, {order}"


class WriteBinidx(Stage):
    """Write the pair PREFIX.bin and PREFIX.idx, with PREFIX.manifest.json beside it."""

    key: ClassVar[str] = "write-binidx"
    takes: ClassVar[str | None] = "tokens"
    gives: ClassVar[str] = "binidx"
    shorthand: ClassVar[str | None] = "prefix"

    prefix: Annotated[str, Field(min_length=1)]
    """Path of the output without suffix; its folder is created."""

    @field_validator("prefix")
    @classmethod
    def _ends_in_a_name(cls, prefix: str) -> str:
        if prefix.rpartition("/")[2] in ("", ".", "..") or "\0" in prefix:
            raise ValueError("a prefix ends in the name that the files are to have: out/data")
        return prefix

    def settings(self) -> dict[str, Any]:
        """Leave out the path: where the files lie changes nothing in them."""
        return {}


class PlanResult(Config):
    """The numbers training derives from the corpus, with the reference's names."""

    ctx_len: int
    """Tokens in a training sample."""

    magic_prime: int
    """See ``rwkvkit.magic_prime``."""

    my_exit_tokens: int
    """Tokens in the corpus: training ends when it has seen as many."""

    warning: str | None = None
    """What is unfavourable about this corpus at this ctx_len, if anything."""

    @property
    def flags(self) -> str:
        """The same as flags of the reference's command line."""
        return (
            f"--my_exit_tokens {self.my_exit_tokens} --magic_prime {self.magic_prime} "
            f"--ctx_len {self.ctx_len}"
        )


class Plan(Stage):
    """Check that the corpus suits the ctx_len, and compute magic prime and exit tokens."""

    key: ClassVar[str] = "plan"
    takes: ClassVar[str | None] = "binidx"
    gives: ClassVar[str] = "binidx"

    def plan(self, n_tokens: int, ctx_len: int) -> PlanResult:
        """Return the numbers for a corpus of ``n_tokens``.

        Raises:
            DataError: the corpus is too small for this ctx_len.
        """
        return PlanResult(
            ctx_len=ctx_len,
            magic_prime=magic_prime(n_tokens, ctx_len),
            my_exit_tokens=n_tokens,
            warning=coverage_warning(n_tokens, ctx_len),
        )

    def summary(self) -> str:
        """Say what is computed."""
        return "magic_prime and my_exit_tokens"


STAGES: tuple[type[Stage], ...] = (
    Read,
    Filter,
    Dedup,
    Encode,
    Split,
    RepeatShuffle,
    WriteBinidx,
    Plan,
)
