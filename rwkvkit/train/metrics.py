"""``metrics.jsonl``, the record of a run, and the loss curve drawn from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rwkvkit.files import naming, read_json_lines, replacing, write_text
from rwkvkit.train.observe import StepReport


class MetricsLog:
    """Appends a line of JSON for each optimizer step and flushes it.

    Rows are those of ``StepReport.row``.

    Attributes:
        rows: those of the steps done before.
    """

    def __init__(self, path: Path, *, done: int) -> None:
        """Open the log of a run that has ``done`` steps; rows of later steps are cut off."""
        self.rows = [row for row in read_metrics(path) if row["step"] <= done]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, now: StepReport) -> None:
        """Append the row of a step."""
        with naming(self._path):
            self._file.write(json.dumps(now.row()) + "\n")
            self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self._path):  # a line that could not be written is tried again
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; a line that a kill cut short, or that is no row, is left out."""
    return [row for row in read_json_lines(path) if {"step", "tokens", "loss"} <= row.keys()]


def plot_loss(metrics: Path, picture: Path) -> None:
    """Draw the loss and its exponential mean over the tokens of a run, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    tokens = [row["tokens"] for row in rows]
    loss, smooth = (
        np.array([row.get(name) for row in rows], dtype=float) for name in ("loss", "loss_smooth")
    )
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens, loss, linewidth=0.6, alpha=0.4, color="tab:blue", label="loss")
    axes.plot(tokens, smooth, linewidth=1.6, color="tab:blue", label="smoothed")
    axes.set_xlabel("tokens")
    axes.set_ylabel("cross entropy (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
