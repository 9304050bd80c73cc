"""What a chain of stages says, taken apart once for those who carry it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rwkvkit.data.binidx import bin_path
from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.manifest import StageRecord, records
from rwkvkit.data.selection import Rules
from rwkvkit.data.stages import (
    Dedup,
    Encode,
    Plan,
    Read,
    RepeatShuffle,
    Split,
    Stage,
    WriteBinidx,
    check_chain,
)

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

    def summaries(self) -> list[str]:
        """Return a line a stage."""
        return [f"{stage.key}: {stage.summary()}" for stage in self._stages]

    def _find(self, kind: type[_S]) -> _S | None:
        return next((stage for stage in self._stages if isinstance(stage, kind)), None)

    def _the(self, kind: type[_S]) -> _S:
        found = self._find(kind)
        assert found is not None, "check_chain lets no such chain pass"
        return found
