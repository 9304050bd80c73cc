"""The log of a run survives kills and resumes without doubled rows."""

import math
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvkit.files import write_text
from rwkvkit.train.metrics import MetricsLog, plot_loss, read_metrics
from rwkvkit.train.observe import StepReport


def reports(first: int, last: int) -> list[StepReport]:
    return [
        StepReport(
            step=step,
            steps=9,
            tokens=step * 8,
            loss=math.nan if step == 4 else 10 / step,
            lr=1e-3,
            weight_decay=0.0,
            grad_norm=1.0,
            tokens_per_s=8.04,
            eta_s=1.0,
            loss_smooth=10 / step + 0.1,
            found={"val_loss": 2.0} if step == 3 else {},
        )
        for step in range(first, last)
    ]


def rows(first: int, last: int) -> list[dict[str, float]]:
    return [now.row() for now in reports(first, last)]


def test_append_resume_and_plot(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path, done=0) as log:
        for now in reports(1, 8):
            log.write(now)
    with path.open("a") as file:
        file.write('{"step": 8, "tok')  # a kill in the middle of a line
    assert read_metrics(path) == rows(1, 8)
    with MetricsLog(path, done=5) as log:
        assert read_metrics(path) == rows(1, 6)
        log.write(reports(6, 7)[0])
    assert read_metrics(path) == rows(1, 7)
    assert [row.get("val_loss") for row in read_metrics(path)] == [None, None, 2.0, *[None] * 3]
    assert [row["loss"] is None for row in read_metrics(path)] == [*[False] * 3, True, *[False] * 2]
    assert "NaN" not in path.read_text()
    plot_loss(path, tmp_path / "run" / "loss.png")
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in path.parent.iterdir()) == ["loss.png", "metrics.jsonl"]


@pytest.fixture
def no_room() -> Iterator[None]:
    """Let no file grow beyond 64 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_without_room_is_named(tmp_path: Path, no_room: None) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(OSError, match="too large") as caught, MetricsLog(path, done=0) as log:
        log.write(reports(1, 2)[0])
    assert caught.value.filename == str(path)
    page = tmp_path / "page.html"
    with pytest.raises(OSError, match="too large") as caught:
        write_text(page, "x" * 100)
    assert caught.value.filename == str(page)
    assert not page.exists()


def test_a_folder_in_a_files_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path, "x")
    assert caught.value.filename == str(tmp_path)
