"""Where a run keeps what it writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, all in one folder.

    Attributes:
        folder: the run's folder.
        result: the name of what the run ends with; the reference's name for whole weights.
    """

    folder: Path
    result: str = "rwkv-final.pth"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints to resume from."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.folder / "metrics.jsonl"

    @property
    def train_log(self) -> Path:
        """One line a mini-epoch, as the reference trainer writes it."""
        return self.folder / "train_log.txt"

    @property
    def loss_curve(self) -> Path:
        """The picture of the loss."""
        return self.folder / "loss.png"

    @property
    def best(self) -> Path:
        """The weights with the smallest loss on held-out data."""
        return self.folder / f"best{Path(self.result).suffix}"

    @property
    def previews(self) -> Path:
        """One JSON line a text that the model wrote on the way."""
        return self.folder / "samples.jsonl"

    @property
    def written(self) -> tuple[Path, ...]:
        """What training writes into the folder, checkpoints aside."""
        texts = (self.metrics, self.train_log, self.previews)
        return (self.final, self.best, self.loss_curve, *texts)

    @property
    def saved(self) -> bool:
        """Whether there is a checkpoint, whole or damaged."""
        return any(self.checkpoints.glob("step-*"))

    @property
    def started(self) -> bool:
        """Whether the run has anything that another run must not replace."""
        return self.final.exists() or self.saved

    @property
    def final(self) -> Path:
        """The weights at the end of the run, or what fine-tuning leaves beside its base."""
        return self.folder / self.result
