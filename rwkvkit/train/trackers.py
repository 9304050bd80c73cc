"""Experiment trackers: tensorboard, wandb and trackio get the rows of ``metrics.jsonl``."""

import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rwkvkit import files
from rwkvkit.errors import RwkvkitError, SetupError
from rwkvkit.train.observe import Sink, StepReport

TrackerName = Literal["tensorboard", "wandb", "trackio"]
_IDS = "trackers.json"


class Tracker(NamedTuple):
    """What takes a step's numbers by name, and what ends it."""

    log: Callable[[dict[str, float], int], Any]
    close: Callable[[], Any]


class TrackerSink:
    """Sends rows to a tracker.

    A run does not need it: what fails after the start is reported, and it gets no more rows.

    Args:
        name: of the tracker, for messages.
        tracker: takes the numbers.
        sent: the last step whose row it has seen.
        report: takes a line for people.
    """

    def __init__(
        self, name: str, tracker: Tracker, sent: int, report: Callable[[str], None]
    ) -> None:
        self._name, self._tracker, self._sent, self._report = name, tracker, sent, report
        self._failed = False

    def __call__(self, now: StepReport) -> None:
        """Take the report of a step."""
        if self._failed or now.step <= self._sent:
            return
        numbers = {
            name: value
            for name, value in now.row().items()
            if isinstance(value, int | float) and name != "step"
        }
        try:
            self._tracker.log(numbers, now.step)
        except Exception as error:  # whatever a tracker's package raises
            self._fail(f"gets no rows from step {now.step:,} on", error)

    def close(self) -> None:
        """End the tracker's own run."""
        try:
            with redirect_stdout(sys.stderr):
                self._tracker.close()
        except Exception as error:  # whatever a tracker's package raises
            self._fail("may lack the last rows", error)

    def _fail(self, what: str, error: Exception) -> None:
        if not self._failed:
            self._report(f"{self._name} {what}, the run goes on: {_reason(error)}")
        self._failed = True


def choose_trackers(asked: Sequence[TrackerName] | None) -> tuple[TrackerName, ...]:
    """Return the trackers of a run: those that were asked for, or tensorboard if it is installed.

    Raises:
        SetupError: one that was asked for is not installed.
    """
    if asked is None:
        return ("tensorboard",) if _installed("tensorboard") else ()
    for name in asked:
        if not _installed(name):
            raise SetupError(
                f"the package {name} is not installed",
                where="train.trackers",
                hint=f"pip install {name}, or leave it out of train.trackers",
            )
    return tuple(dict.fromkeys(asked))


@contextmanager
def open_trackers(
    names: Sequence[TrackerName],
    folder: Path,
    *,
    project: str,
    run: str,
    settings: Mapping[str, Any],
    sent: int,
    report: Callable[[str], None],
) -> Iterator[list[Sink]]:
    """Open trackers as sinks, and close them at the end.

    Args:
        names: which; from ``choose_trackers``.
        folder: the run's folder.
        project: under which wandb and trackio show the run.
        run: its name.
        settings: what the run was started with.
        sent: the last step whose row a tracker has seen; a resumed run sends none a second time.
        report: takes a line about a tracker that fails later.

    Raises:
        DataError: ``trackers.json`` is damaged.
        SetupError: one does not start.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            try:
                with redirect_stdout(sys.stderr):  # stdout is for results
                    tracker = _OPEN[name](folder, project, run, dict(settings))
            except RwkvkitError:
                raise
            except Exception as error:  # whatever its package raises: no login, no network
                offline = ", set WANDB_MODE=offline" if name == "wandb" else ""
                raise SetupError(
                    f"{name} does not start: {_reason(error)}",
                    where="train.trackers",
                    hint=f"mend that{offline}, or leave {name} out",
                ) from error
            sink = TrackerSink(name, tracker, sent, report)
            stack.callback(sink.close)
            sinks.append(sink)
        yield sinks


def _reason(error: Exception) -> str:
    """Say in one line what a tracker's package raised."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _tensorboard(folder: Path, project: str, run: str, settings: dict[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(folder: Path, project: str, run: str, settings: dict[str, Any]) -> Tracker:
    import wandb

    session = wandb.init(
        project=project,
        name=run,
        id=_run_id(folder, "wandb"),
        resume="allow",
        dir=str(folder),
        config=settings,
        save_code=False,
    )
    return Tracker(lambda numbers, step: session.log(numbers, step=step), session.finish)


def _trackio(folder: Path, project: str, run: str, settings: dict[str, Any]) -> Tracker:
    import trackio

    name = f"{run}-{_run_id(folder, 'trackio')}"
    session = trackio.init(project=project, name=name, config=settings, resume="allow", embed=False)
    return Tracker(lambda numbers, step: session.log(numbers, step=step), trackio.finish)


_OPEN: dict[str, Callable[[Path, str, str, dict[str, Any]], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _run_id(folder: Path, tracker: str) -> str:
    """Return what a tracker knows the run by, made once and kept in the run's folder."""
    path = folder / _IDS
    known = files.read_json(path) if path.exists() else {}
    if tracker not in known:
        known[tracker] = secrets.token_hex(4)
        files.write_text(path, json.dumps(known) + "\n")
    return str(known[tracker])
