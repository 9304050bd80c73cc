"""Curves of one or several runs as one SVG."""

import io
import math
from collections.abc import Sequence
from typing import Any

from rwkvkit.workflow.history import RunHistory

_POINTS = 600  # of a curve; more cannot be told apart
_COLORS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4b5563")
_PANELS = (
    ("loss", "nats a token"),
    ("lr", "learning rate"),
    ("grad_norm", "gradient norm before clipping"),
    ("tokens_per_s", "tokens/s"),
)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rwkvkit",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
}


def draw_curves(runs: Sequence[RunHistory], labels: Sequence[str]) -> str:
    """Return the curves of runs over their tokens: loss, learning rate, gradient norm, speed.

    Args:
        runs: one, or several that are laid over each other.
        labels: a name for each.

    Returns:
        An ``<svg>`` element that needs nothing else.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 7.6), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.add_gridspec(3, 3, height_ratios=(2, 2, 1.7))
        places = (grid[:2, :], grid[2, 0], grid[2, 1], grid[2, 2])
        for place, (name, title) in zip(places, _PANELS, strict=True):
            axes = figure.add_subplot(place)
            axes.set_title(title if name != "loss" else f"loss, {title}")
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.xaxis.set_major_formatter(_tokens)
            for number, run in enumerate(runs):
                color = _COLORS[number % len(_COLORS)]
                if name == "loss":
                    _draw_loss(axes, run, labels[number], color, alone=len(runs) == 1)
                else:
                    axes.plot(*_thin(run.column(name)), color=color, linewidth=1.1)
            if name == "loss":
                axes.legend(frameon=False)
                axes.set_xlabel("tokens")
            if name == "grad_norm":
                axes.set_yscale("log")
            if name == "tokens_per_s":
                axes.set_ylim(bottom=0)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _draw_loss(axes: Any, run: RunHistory, label: str, color: str, *, alone: bool) -> None:
    axes.plot(*_thin(run.column("loss")), color=color, linewidth=0.7, alpha=0.25)
    smooth = run.column("loss_smooth")
    axes.plot(*_thin(smooth), color=color, linewidth=1.8, label="smoothed" if alone else label)
    validation = run.column("val_loss")
    if validation:
        axes.plot(
            *_thin(validation),
            color="#111827" if alone else color,
            linewidth=1.2,
            linestyle="--",
            marker="o",
            markersize=3.5,
            label="validation" if alone else f"{label}, validation",
        )
    spikes = run.column("spike")
    if spikes:
        loss = dict(run.column("loss"))
        points = [(tokens, loss[tokens]) for tokens, _ in spikes if tokens in loss]
        axes.plot(*zip(*points, strict=True), "x", color="#dc2626", markersize=7, label="spikes")


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return x and y, of long curves the least and the largest value of each of many stretches."""
    stretch = math.ceil(2 * len(points) / _POINTS)
    if stretch > 2:
        kept = []
        for start in range(0, len(points), stretch):
            part = points[start : start + stretch]
            ends = {
                min(part, key=lambda point: point[1]),
                max(part, key=lambda point: point[1]),
            }
            kept += sorted(ends)
        points = kept
    return [x for x, _ in points], [y for _, y in points]


def _tokens(value: float, position: float) -> str:
    """Write a number of tokens as ``1.5B``."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
