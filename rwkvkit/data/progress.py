"""How far a build is, for whoever draws it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a build is.

    Attributes:
        phase: ``encode`` (inputs to parts) or ``write`` (parts to the output).
        bytes_done: bytes of input encoded, or of output written.
        bytes_total: of how many; None where that is not known.
        documents: documents encoded or written so far.
        tokens: tokens encoded or written so far.
        rejected: lines skipped so far; counted while encoding only.
    """

    phase: str
    bytes_done: int
    bytes_total: int | None
    documents: int
    tokens: int
    rejected: int


Report = Callable[[Progress], None]
