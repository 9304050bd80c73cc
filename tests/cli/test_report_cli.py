"""Pages about runs: whole, by themselves, with what the run has."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rwkvkit.cli.console import Console
from rwkvkit.cli.train import _shower
from rwkvkit.train.observe import StepReport
from rwkvkit.workflow.charts import _thin


class Page(HTMLParser):
    """The text of a page, and everything that it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.tags, self.loaded = "", [], []
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action") and not value.startswith("#"):
                self.loaded.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def curves(self) -> ElementTree.Element:
        [svg] = re.findall(r"<svg.*</svg>", self.source, re.DOTALL)
        return ElementTree.fromstring(svg)

    def check(self) -> None:
        assert self.loaded == []
        assert not {"script", "link", "img", "iframe"} & set(self.tags)
        assert not re.search(r"@import|url\((?!#)", self.source)


def test_a_run_leaves_its_page_and_compares_with_another(folder: Path, run) -> None:
    fast = ["--set", "train.total_steps=4"]
    trained = run("train", "r.yaml", *fast, "--set", "sample.prompt=<b>", "--profile", "1")
    assert trained.code == 0
    assert "profile: 1 steps in out/tiny/trace.json" in trained.err
    assert "ms CPU a step" in trained.err
    page = Page(folder / "out/tiny/report.html")
    page.check()
    for text in (
        "x070 n_layer 2 n_embd 64",
        "4 of 4 steps",
        "smoothed loss",
        "total_steps: 4",
        "prompt: <b>",  # escaped, or it would be a tag
        "80",
        "global batch 2 samples",
        "torch",
    ):
        assert text in page.text, text
    assert "learning rate" in "".join(page.curves.itertext())
    assert "validation" not in "".join(page.curves.itertext())

    log = folder / "out/tiny/metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[1] |= {"loss": None, "skipped": 1}
    rows[2] |= {"spike": 7.5, "rolled_back_to": 1, "val_loss": 5.5}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"step": 3, "prompt": "a\u2028b", "text": "</pre><script>"}
    line = json.dumps(sample, ensure_ascii=False) + "\n"
    cut = b'{"step": 4, "prompt": "\xe4\xb8'  # inside a character
    (folder / "out/tiny/samples.jsonl").write_bytes(line.encode() + cut)
    shown = run("report", "out/tiny", "--json")
    assert shown.facts == {"report": "out/tiny/report.html"}
    page = Page(folder / "out/tiny/report.html")
    page.check()
    assert "finished: 4 of 4 steps" in page.text
    assert "skipped: no finite gradient" in page.text
    assert "7.5 sigma above its mean, rolled back to step 1" in page.text
    assert "a\u2028b</pre><script>" in page.text
    assert "validation" in "".join(page.curves.itertext())

    shutil.copytree(folder / "out/tiny", folder / "other")
    about = json.loads((folder / "other/about.json").read_text())
    about["recipe"]["train"]["lr_init"] = 0.5
    (folder / "other/about.json").write_text(json.dumps(about))
    compared = run("compare", "out/tiny", "other")
    assert compared.code == 0
    header, *lines = compared.out.splitlines()
    assert header.split()[:4] == ["run", "steps", "tokens", "loss_smooth"]
    assert lines[0].split()[:3] == ["out/tiny", "4", "128"]
    assert "other differs from out/tiny in: train.lr_init 0.001 -> 0.5" in compared.out
    page = Page(folder / "compare.html")
    page.check()
    assert {"out/tiny", "other"} <= set("".join(page.curves.itertext()).split())
    facts = run("compare", "out/tiny", "other", "-o", "both.html", "--json").facts
    assert facts["runs"]["other"]["val_loss"] == 5.5
    assert facts["page"] == "both.html"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "absent"], 4, "absent: no run: there is no metrics.jsonl"),
        (["compare", "absent", "absent"], 4, "give the folder of a run"),
        (["compare"], 2, "RUN RUN"),
        (["compare", "absent", "-o", "."], 2, ".: is a folder"),
    ],
)
def test_what_is_no_run(folder: Path, run, arguments: list[str], code: int, message: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert not (folder / "compare.html").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("recipe", 3), ("data", 5), ("plan", [1]), ("steps", "many"), ("system", []), ("model", None)],
)
def test_what_is_known_of_a_run_is_damaged(folder: Path, run, name: str, value: object) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 32, "loss": 5.5}\n')
    (folder / "about.json").write_text(json.dumps({name: value}))
    for command in (["report", "."], ["compare", ".", "."]):
        outcome = run(*command)
        assert outcome.code == 4
        assert f"about.json: {name} is not what" in outcome.err
        assert "hint:" in outcome.err


def test_long_curves_keep_their_peaks() -> None:
    points = [(float(x), float(x % 7)) for x in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    x, y = _thin(points)
    assert len(x) <= 600
    assert x == sorted(x)
    assert (max(y), min(y)) == (99.0, 0.0)
    short = [(1.0, 2.0), (2.0, 1.0)]
    assert _thin(short) == ([1.0, 2.0], [2.0, 1.0])


def test_the_line_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"step": 9, "steps": 9, "tokens": 4608, "loss": 3.25, "loss_smooth": 3.5, "lr": 6e-4}
    facts |= {"weight_decay": 0.0, "grad_norm": 0.75, "tokens_per_s": 75_000.0, "eta_s": 61.0}
    facts |= {"peak_memory_gb": 7.04, "data_wait_s": 0.002}
    _shower(Console(as_json=False))(StepReport(**facts, mfu=0.371, skipped=2))
    assert capsys.readouterr().err.split("  ") == [
        "step 9/9",
        "loss 3.2500",
        "mean 3.5000",
        "lr 6.00e-04",
        "grad 0.75",
        "75,000 tok/s",
        "MFU 37.1%",
        "7.0 GB",
        "data wait 2 ms",
        "2 skipped",
        "4,608 tokens",
        "ETA 1:01\n",
    ]
    _shower(Console(as_json=False))(StepReport(**facts))
    line = capsys.readouterr().err
    assert "MFU" not in line  # unknown
    assert "skipped" not in line
