"""``report.html`` of a run, and the page that lays runs over each other: each a file by itself."""

import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.workflow.charts import draw_curves
from rwkvkit.workflow.history import RunHistory

REPORT = "report.html"
_SHOWN_SAMPLES = 24
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #f3f4f6; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
.quiet { color: #6b7280; margin: .2rem 0 1.5rem; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: .6rem; padding: 1.1rem 1.3rem;
  margin-bottom: 1rem; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; padding: 0; background: none; border: 0;
  overflow: visible; }
.tile { flex: 1 1 7.5rem; background: #fff; border: 1px solid #e5e7eb; border-radius: .6rem;
  padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tile span { color: #6b7280; font-size: .82rem; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top; }
th { color: #6b7280; font-weight: 500; white-space: nowrap; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace,
  monospace; }
.sample { border-top: 1px solid #e5e7eb; padding: .7rem 0; } .sample:first-of-type { border: 0; }
.sample span { color: #6b7280; font-size: .82rem; }
.sample .prompt { color: #2563eb; font-size: inherit; }
"""
_NAMES = {
    "steps": "steps",
    "tokens": "tokens",
    "loss_smooth": "smoothed loss",
    "val_loss": "best validation loss",
    "tokens_per_s": "tokens/s, median",
    "mfu": "MFU",
    "peak_memory_gb": "peak memory, GB",
    "skipped": "steps skipped",
    "spikes": "loss spikes",
}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, and return its path.

    Raises:
        DataError: the folder holds no run, or a file of it is damaged.
    """
    run = RunHistory.read(folder)
    about = run.about
    shown = {name: value for name, value in run.figures().items() if value is not None}
    tiles = "".join(
        f'<div class="tile"><b>{_figure(name, value)}</b><span>{_NAMES[name]}</span></div>'
        for name, value in shown.items()
    )
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="quiet">{escape(about.get("model", ""))}<br>{escape(run.state)}</p>',
        f'<section class="tiles">{tiles}</section>',
        _section("Curves", draw_curves([run], [run.name])),
        _section("Guards", _pairs(_events(run))),
        _section("Samples", _texts(run)),
        _section("Data", _pairs(_data(run))),
        _section("Choices", _list(about.get("plan", []))),
        _section("Recipe", _yaml(about.get("recipe"))),
        _section("System", _pairs(about.get("system", {}))),
    ]
    path = folder / REPORT
    files.write_text(path, _page(run.name, parts))
    return path


def write_comparison(runs: Sequence[RunHistory], path: Path) -> None:
    """Write a page that lays the curves of runs over each other, with their figures."""
    names = labels(runs)
    figures = [run.figures() for run in runs]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{title}</th>"
        + "".join(f"<td>{_figure(name, found[name])}</td>" for found in figures)
        + "</tr>"
        for name, title in _NAMES.items()
        if any(found[name] is not None for found in figures)
    )
    parts = [
        "<h1>Runs compared</h1>",
        f'<p class="quiet">{escape(", ".join(names))}</p>',
        _section("Curves", draw_curves(runs, names)),
        _section("Figures", f"<table><tr><th></th>{head}</tr>{rows}</table>"),
        _section("What differs", _pairs(setting_differences(runs))),
    ]
    files.write_text(path, _page("Runs compared", parts))


def labels(runs: Sequence[RunHistory]) -> list[str]:
    """Return a name for each run; where names repeat, its folder."""
    names = [run.name for run in runs]
    return [
        str(run.folder) if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def setting_differences(runs: Sequence[RunHistory]) -> dict[str, str]:
    """Return what sets each run's recipe apart from the first one's."""
    first = runs[0].about.get("recipe", {})
    return {
        name: ", ".join(differences(first, run.about.get("recipe", {}))) or "nothing"
        for name, run in zip(labels(runs)[1:], runs[1:], strict=True)
    }


def _page(title: str, parts: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _pairs(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _list(lines: Iterable[str]) -> str:
    return "<br>".join(escape(line) for line in lines)


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "mfu":
        return f"{value:.1%}"
    if name == "tokens_per_s":
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _events(run: RunHistory) -> dict[str, str]:
    found = {}
    for row in run.rows:
        step = f"step {row['step']:,}"
        if row.get("loss") is None:
            found[step] = "skipped: no finite gradient"
        elif "spike" in row:
            back = row.get("rolled_back_to")
            after = f", rolled back to step {back:,}" if back is not None else ""
            found[step] = f"loss {row['loss']:.4f}, {row['spike']:.1f} sigma above its mean{after}"
    return found


def _texts(run: RunHistory) -> str:
    return "".join(
        f'<div class="sample"><span>step {sample["step"]:,}</span>'
        f'<pre><span class="prompt">{escape(str(sample["prompt"]))}</span>'
        f"{escape(str(sample['text']))}</pre></div>"
        for sample in reversed(run.samples[-_SHOWN_SAMPLES:])
    )


def _data(run: RunHistory) -> dict[str, Any]:
    manifest = run.manifest
    if manifest is None:
        return {"dataset": run.about["data"]} if "data" in run.about else {}
    facts = {
        "dataset": run.about["data"],
        "documents": f"{manifest.documents:,}",
        "tokens": f"{manifest.tokens:,}",
        "inputs": f"{len(manifest.inputs):,} files",
        "made by": f"rwkvkit {manifest.rwkvkit}",
        "fingerprint": manifest.fingerprint,
    }
    if manifest.plan:
        facts["magic_prime"] = str(manifest.plan.magic_prime)
    if manifest.validation:
        facts["for validation"] = f"{manifest.validation.tokens:,} tokens"
    return facts


def _yaml(recipe: Any) -> str:
    if not recipe:
        return ""
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(recipe, out)
    return f"<pre>{escape(out.getvalue())}</pre>"
