"""The log of a run survives kills and resumes without doubled rows."""

from pathlib import Path

from rwkvkit.train.metrics import MetricsLog, plot_loss, read_metrics


def rows(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": step, "tokens": step * 8, "loss": 10 / step} for step in range(first, last)]


def test_append_resume_and_plot(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path, done=0) as log:
        for row in rows(1, 8):
            log.write(row)
    with path.open("a") as file:
        file.write('{"step": 8, "tok')  # a kill in the middle of a line
    assert read_metrics(path) == rows(1, 8)
    with MetricsLog(path, done=5) as log:
        assert read_metrics(path) == rows(1, 6)
        log.write(rows(6, 7)[0])
    assert read_metrics(path) == rows(1, 7)
    plot_loss(path, tmp_path / "run" / "loss.png")
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in path.parent.iterdir()) == ["loss.png", "metrics.jsonl"]
