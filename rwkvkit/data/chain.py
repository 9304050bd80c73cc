"""What a chain of stages says, taken apart once for those who carry it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rwkvkit.data.binidx import bin_path
from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.manifest import StageRecord, records
from rwkvkit.data.selection import Rules
from rwkvkit.data.stages import (
    STAGES,
    Dedup,
    Encode,
    Plan,
    Read,
    RepeatShuffle,
    Split,
    Stage,
    WriteBinidx,
)
from rwkvkit.errors import RecipeError

_S = TypeVar("_S", bound=Stage)


class Chain:
    """A checked chain.

    Attributes:
        prefix: path of the output, without suffix.
        read: where the documents come from.
        work: what happens to each chunk of them.
        encode: which tokenizer.
        repeat: passes and shuffling; one unshuffled pass unless the recipe has the stage.
        rules: which documents go where.
        sampled: whether only a fraction of a source is taken.
        plan: the stage that plans, if there is one.
        seed: what the output depends on; None if nothing is drawn.
        ctx_len: tokens in a training sample; None if nothing is planned.

    Args:
        stages: the chain, in the order of the recipe.
        seed: for what is drawn, where the shuffle has no seed of its own.
        ctx_len: tokens in a training sample.

    Raises:
        RecipeError: a stage does not find before it what it needs.
    """

    def __init__(self, stages: Sequence[Stage], *, seed: int, ctx_len: int) -> None:
        check_chain(stages)
        self._stages = tuple(stages)
        self.read = self._the(Read)
        self.encode = self._the(Encode)
        self.repeat = self._find(RepeatShuffle) or RepeatShuffle(shuffle=False)
        self.plan = self._find(Plan)
        self.ctx_len = ctx_len if self.plan else None
        split = self._find(Split)
        own = self.repeat.seed
        self.rules = Rules(
            seed=seed if own is None else own,
            dedup=self._find(Dedup) is not None,
            validation=split.validation if split else 0.0,
        )
        self.work = ChunkWork(stages, self.rules.seed)
        self.sampled = any(source.fraction < 1 for source in self.read.sources)
        drawn = self.repeat.shuffle or split or self.sampled
        self.seed = self.rules.seed if drawn else None
        # The prefix may carry .bin or .idx, as everywhere.
        self.prefix: Path = bin_path(self._the(WriteBinidx).prefix).with_suffix("")

    def records(self) -> list[StageRecord]:
        """Return the stages as a manifest records them."""
        return records(self._stages)

    def summaries(self, outputs: str) -> list[str]:
        """Return a line a stage; for the one that writes, ``outputs``."""
        return [
            f"{stage.key}: {outputs if isinstance(stage, WriteBinidx) else stage.summary()}"
            for stage in self._stages
        ]

    def _find(self, kind: type[_S]) -> _S | None:
        return next((stage for stage in self._stages if isinstance(stage, kind)), None)

    def _the(self, kind: type[_S]) -> _S:
        found = self._find(kind)
        assert found is not None, "check_chain lets no such chain pass"
        return found


def check_chain(stages: Sequence[Stage]) -> None:
    """Check that each stage finds before it what it takes.

    Raises:
        RecipeError: a stage is missing, doubled, or out of place.
    """
    standing: str | None = None
    for i, stage in enumerate(stages):
        where = f"prepare[{i}].{stage.key}"
        if not stage.repeatable and any(type(other) is type(stage) for other in stages[:i]):
            raise RecipeError(f"a second {stage.key}", where=where, hint="a chain has one of each")
        if stage.takes != standing:
            makers = [
                other.key
                for other in STAGES
                if other.gives == stage.takes and other.takes != other.gives
            ]
            raise RecipeError(
                f"{stage.key} needs {stage.takes} before it, and finds {standing or 'nothing'}",
                where=where,
                hint=f"{stage.takes} come{'s' if stage.takes != 'tokens' else ''} from "
                + " or ".join(makers),
            )
        standing = stage.gives
    if standing != "binidx":
        raise RecipeError(
            "the chain writes nothing",
            where="prepare",
            hint="the usual chain is: read, encode, repeat-shuffle, write-binidx, plan",
        )
