"""The sinks of a run beside ``metrics.jsonl``: ``train_log.txt``, trackers, pictures and page."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rwkvkit.model.config import ModelConfig
from rwkvkit.recipe.schema import Recipe
from rwkvkit.train.batch import Sampler
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.metrics import plot_loss, read_metrics
from rwkvkit.train.observe import Sink, StepReport
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.profile import Profile
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.sampler import SampleReader
from rwkvkit.train.trackers import choose_trackers, open_trackers
from rwkvkit.train.train_log import TrainLog
from rwkvkit.workflow.history import write_about
from rwkvkit.workflow.page import write_report

_PICTURE_SECONDS = 120.0
_PICTURE_SHARE = 0.01  # of the time, at most


class Pictures:
    """A sink that draws ``loss.png`` and ``report.html`` every few minutes.

    A run needs neither: a failure is reported, and the run goes on.
    """

    def __init__(self, files: RunFiles, report: Callable[[str], None]) -> None:
        self._files, self._report = files, report
        self._due = time.monotonic() + _PICTURE_SECONDS

    def __call__(self, now: StepReport) -> None:
        """Take the report of a step."""
        if time.monotonic() > self._due:
            self.draw()

    def draw(self) -> None:
        """Draw what ``metrics.jsonl`` has, if it has a step."""
        began = time.monotonic()
        try:
            if read_metrics(self._files.metrics):
                plot_loss(self._files.metrics, self._files.loss_curve)
                write_report(self._files.folder)
        except Exception as error:  # whatever a file's content leads to
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._report(f"{self._files.folder}: pictures could not be drawn: {reason}")
        ended = time.monotonic()
        self._due = ended + max(_PICTURE_SECONDS, (ended - began) / _PICTURE_SHARE)


@contextmanager
def open_sinks(
    recipe: Recipe,
    settings: TrainConfig,
    model: ModelConfig,
    plan: TrainPlan,
    samples: Sampler,
    report: Callable[[str], None],
) -> Iterator[list[Sink]]:
    """Open the sinks that a recipe asks for; one process of a run does this.

    Raises:
        SetupError: a tracker is not installed, or does not start.
    """
    files = RunFiles(recipe.folder)
    rows = read_metrics(files.metrics)
    resolved = recipe.model_dump(mode="json", exclude_none=True, exclude={"prepare"})
    flags = settings.model_dump(mode="json") | {
        "ctx_len": recipe.ctx_len,
        "magic_prime": samples.magic_prime if isinstance(samples, SampleReader) else 0,
        "seed": recipe.seed,
    }
    write_about(recipe, model, plan)
    pictures = Pictures(files, report)
    log = TrainLog(files.train_log, files.metrics, flags, plan.global_batch)
    with open_trackers(
        choose_trackers(settings.trackers),
        files.folder,
        project=settings.tracker_project,
        run=recipe.name,
        settings=resolved,
        sent=rows[-1]["step"] if rows else 0,
        report=report,
    ) as trackers:
        sinks: list[Sink] = [log, *trackers, pictures]
        with ExitStack() as stack:
            if settings.profile:
                profile = Profile(settings.profile, recipe.folder, report)
                stack.callback(profile.close)
                sinks.append(profile)
            try:
                yield sinks
            finally:
                pictures.draw()
