"""The card of a dataset: what it is and what is in it, as Markdown with a drawing beside it."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkvkit import files
from rwkvkit.data.binidx import BLOCK, Binidx, bin_path, open_binidx
from rwkvkit.data.contents import length_histogram
from rwkvkit.data.manifest import Manifest, read_manifest
from rwkvkit.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rwkvkit.tokenizer.text import Tokenizer

SUFFIX = ".md"
PLOT_SUFFIX = ".png"
_MOST_BLOCKS = 64  # of tokens that are counted, spread over the whole
_MOST_INPUTS = 100
_SAMPLES = 3
_SAMPLE_TOKENS = 96
_DRAWN = "lengths and token frequencies"


def card_path(prefix: Path) -> Path:
    """Return where the card of a dataset lies."""
    return prefix.with_name(prefix.name + SUFFIX)


def has_card(prefix: Path, manifest: Manifest) -> bool:
    """Say whether the card that lies beside a dataset is its own, and not one of an earlier one.

    Args:
        prefix: path of the dataset, without suffix.
        manifest: of the dataset.
    """
    try:
        text = card_path(prefix).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return _fingerprint_cell(manifest) in text and _plot_path(prefix).exists()


def write_card(prefix: Path, tokenizer: "Tokenizer") -> None:
    """Write ``PREFIX.md`` and ``PREFIX.png`` for a dataset that has a manifest.

    Args:
        prefix: path of the dataset, without suffix.
        tokenizer: the one it was made with.

    Raises:
        DataError: the dataset is damaged, or has no manifest.
        OSError: the files cannot be written.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        raise DataError(
            "there is no manifest to make a card from",
            where=str(prefix),
            hint="build the dataset with rwkvkit prepare, which leaves one",
        )
    data = open_binidx(prefix)
    plot, card = _plot_path(prefix), card_path(prefix)
    with ExitStack() as stack:
        with suppress(OSError):  # some network file systems lock nothing
            if stack.enter_context(files.locked(bin_path(prefix))):
                files.remove_temporaries(plot)
                files.remove_temporaries(card)
        with files.replacing(plot) as temporary:
            _draw(data, temporary)
        samples = _samples(data, tokenizer)
        lines = [*_facts(prefix.name, manifest), "", f"![{_DRAWN}]({plot.name})"]
        files.write_text(card, "\n".join([*lines, "", *samples]) + "\n")


def _plot_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + PLOT_SUFFIX)


def _fingerprint_cell(manifest: Manifest) -> str:
    return f"`{manifest.fingerprint}`"


def _facts(name: str, manifest: Manifest) -> list[str]:
    rows = [
        ("documents", f"{manifest.documents:,}"),
        ("tokens", f"{manifest.tokens:,}"),
        ("documents read", f"{manifest.documents_in + manifest.filtered:,}"),
        ("lines rejected", f"{manifest.rejected:,}"),
        ("documents filtered out", f"{manifest.filtered:,}"),
        ("documents outside their source's fraction", f"{manifest.left_out:,}"),
        ("duplicates dropped", f"{manifest.duplicates:,}"),
    ]
    if manifest.validation:
        held = manifest.validation
        rows.append(("for validation", f"{held.documents:,} documents, {held.tokens:,} tokens"))
    rows += [("seed", "not used" if manifest.seed is None else f"{manifest.seed}")]
    rows += [("fingerprint", _fingerprint_cell(manifest))]
    lines = [f"# {name}", "", f"Made by rwkvkit {manifest.rwkvkit}.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows]
    plans = {plan.ctx_len: plan for plan in (*manifest.plans, manifest.plan) if plan}
    if plans:
        lines += ["", "| ctx_len | magic_prime | my_exit_tokens |", "|--:|--:|--:|"]
        lines += [
            f"| {ctx_len} | {plan.magic_prime} | {plan.my_exit_tokens} |"
            for ctx_len, plan in sorted(plans.items())
        ]
    lines += ["", "| stage | settings |", "|---|---|"]
    for record in manifest.prepare:
        shown = ", ".join(f"{key}: {_short(value)}" for key, value in record.settings.items())
        lines.append(f"| {record.stage} | {_cell(shown)} |")
    lines += ["", "| input | bytes | sha256 |", "|---|--:|---|"]
    shown_inputs = manifest.inputs[:_MOST_INPUTS]
    lines += [f"| {_cell(file.path)} | {file.bytes:,} | `{file.sha256}` |" for file in shown_inputs]
    if rest := manifest.inputs[_MOST_INPUTS:]:
        n_bytes = sum(file.bytes for file in rest)
        lines.append(f"| {len(rest):,} more, all in the manifest | {n_bytes:,} | |")
    return lines


def _cell(text: str) -> str:
    """Return text that stays within its cell of a table."""
    return text.translate({ord("|"): r"\|", ord("\n"): r"\n", ord("\r"): r"\r"})


def _short(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list) else f"`{value}`"


def _samples(data: Binidx, tokenizer: "Tokenizer") -> list[str]:
    """Show the beginnings of some documents; with a mask, what counts in the loss is marked."""
    lines = ["## Samples", ""]
    if data.has_mask:
        lines += ["What counts in the loss stands between « and ».", ""]
    starts = np.cumsum(data.sizes, dtype=np.int64) - data.sizes
    for number in sorted({len(data) * i // _SAMPLES for i in range(_SAMPLES)}):
        size = int(data.sizes[number])
        shown = min(size, _SAMPLE_TOKENS)
        start = int(starts[number])
        tokens = data.tokens(start, shown)
        mask = data.mask(start, shown) if data.has_mask else None
        text = _marked(tokens, mask, tokenizer) + (" …" if shown < size else "")
        quoted = [f"    {line}".rstrip() for line in text.splitlines() or [""]]
        lines += [f"Document {number:,}, {size:,} tokens:", "", *quoted, ""]
    return lines[:-1]


def _marked(tokens: NDArray[Any], mask: NDArray[np.uint8] | None, tokenizer: "Tokenizer") -> str:
    if mask is None:
        return tokenizer.decode(tokens)
    borders = np.flatnonzero(np.diff(mask)) + 1
    pieces = zip(np.split(tokens, borders), np.split(mask, borders), strict=True)
    texts = [(tokenizer.decode(own), own_mask[0]) for own, own_mask in pieces]
    return "".join(f"«{text}»" if counted else text for text, counted in texts)


def _draw(data: Binidx, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2))
    FigureCanvasAgg(figure)
    # matplotlib's own layouts find these margins by drawing everything twice more
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.2, "top": 0.9, "wspace": 0.22}
    lengths, frequencies = figure.subplots(1, 2, gridspec_kw=margins)
    _draw_lengths(lengths, data)
    _draw_frequencies(frequencies, data)
    figure.savefig(path, format="png", dpi=120)


def _draw_lengths(axes: "Axes", data: Binidx) -> None:
    shown, counts = length_histogram(data.sizes)
    axes.bar(shown - 0.5, counts, width=0.9)
    axes.set_xticks(shown - 1, [f"{2 ** int(power) // 2}" for power in shown], rotation=60)
    axes.set_title("documents by tokens")


def _draw_frequencies(axes: "Axes", data: Binidx) -> None:
    n_blocks = -(-data.n_tokens // BLOCK)
    step = max(1, -(-n_blocks // _MOST_BLOCKS))
    counts = np.zeros(0, np.int64)
    for block in range(0, n_blocks, step):
        start = block * BLOCK
        own = np.bincount(data.tokens(start, min(BLOCK, data.n_tokens - start)))
        if len(own) > len(counts):
            counts, own = own, counts
        counts[: len(own)] += own
    ranked = np.sort(counts[counts > 0])[::-1]
    axes.loglog(np.arange(1, len(ranked) + 1), ranked / ranked.sum())
    axes.set_xlabel("rank of the token")
    axes.set_title("frequency of tokens")
