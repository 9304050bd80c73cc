"""The sinks of a recipe's run beside ``metrics.jsonl``: ``train_log.txt`` and trackers."""

from collections.abc import Iterator
from contextlib import contextmanager

from rwkvkit.recipe.schema import Recipe
from rwkvkit.train.batch import Sampler
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.loop import RunFiles
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.observe import Sink
from rwkvkit.train.sampler import SampleReader
from rwkvkit.train.trackers import choose_trackers, open_trackers
from rwkvkit.train.train_log import TrainLog


@contextmanager
def open_sinks(
    recipe: Recipe, settings: TrainConfig, samples: Sampler, global_batch: int
) -> Iterator[list[Sink]]:
    """Open the sinks that a recipe asks for; one process of a run does this.

    Raises:
        SetupError: a tracker is not installed.
    """
    files = RunFiles(recipe.folder)
    rows = read_metrics(files.metrics)
    resolved = recipe.model_dump(mode="json", exclude_none=True, exclude={"prepare"})
    flags = settings.model_dump(mode="json") | {
        "ctx_len": recipe.ctx_len,
        "magic_prime": samples.magic_prime if isinstance(samples, SampleReader) else 0,
        "seed": recipe.seed,
    }
    log = TrainLog(files.train_log, files.metrics, flags, global_batch)
    with open_trackers(
        choose_trackers(settings.trackers),
        files.folder,
        project=settings.tracker_project,
        run=recipe.name,
        settings=resolved,
        sent=rows[-1]["step"] if rows else 0,
    ) as trackers:
        yield [log, *trackers]
