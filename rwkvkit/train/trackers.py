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
from rwkvkit.errors import SetupError
from rwkvkit.train.observe import Sink, StepReport

TrackerName = Literal["tensorboard", "wandb", "trackio"]
_IDS = "trackers.json"


class Tracker(NamedTuple):
    """What takes a step's numbers by name, and what ends it."""

    log: Callable[[dict[str, float], int], Any]
    close: Callable[[], Any]


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
) -> Iterator[list[Sink]]:
    """Open trackers as sinks, and close them at the end.

    Args:
        names: which; from ``choose_trackers``.
        folder: the run's folder.
        project: under which wandb and trackio show the run.
        run: its name.
        settings: what the run was started with.
        sent: the last step whose row a tracker has seen; a resumed run sends none a second time.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            with redirect_stdout(sys.stderr):  # stdout is for results
                tracker = _OPEN[name](folder, project, run, dict(settings))
            stack.callback(_close, tracker)
            sinks.append(_sink(tracker, sent))
        yield sinks


def _close(tracker: Tracker) -> None:
    with redirect_stdout(sys.stderr):
        tracker.close()


def _sink(tracker: Tracker, sent: int) -> Sink:
    def write(now: StepReport) -> None:
        if now.step > sent:
            numbers = {
                name: value
                for name, value in now.row().items()
                if isinstance(value, int | float) and name != "step"
            }
            tracker.log(numbers, now.step)

    return write


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
