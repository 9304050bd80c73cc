"""What a run's folder tells of the run, for people to look at."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvkit import __version__, files
from rwkvkit.data.manifest import Manifest, read_manifest
from rwkvkit.errors import DataError
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.describe import summary
from rwkvkit.model.flops import train_flops
from rwkvkit.recipe.dataset import dataset_prefix
from rwkvkit.recipe.schema import Recipe
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.run_record import read_record

ABOUT = "about.json"


@dataclass(frozen=True)
class RunHistory:
    """A run as its folder has it.

    Attributes:
        folder: where it is.
        about: what ``write_about`` wrote; empty where that is missing.
        rows: of ``metrics.jsonl``.
        samples: texts generated on the way: dicts of ``step``, ``prompt`` and ``text``.
        manifest: of the dataset, if it is where it was.
        finished: whether the run is complete.
    """

    folder: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    manifest: Manifest | None
    finished: bool

    @classmethod
    def read(cls, folder: Path) -> "RunHistory":
        """Read a run's folder.

        Raises:
            DataError: it holds no run, or a file of it is damaged.
        """
        run = RunFiles(folder)
        rows = read_metrics(run.metrics)
        if not rows:
            raise DataError(
                "no run: there is no metrics.jsonl with a step in it",
                where=str(folder),
                hint="give the folder of a run, such as out/quickstart",
            )
        about = _read_about(folder / ABOUT)
        manifest = read_manifest(about["data"]) if "data" in about else None
        finished = "finished" in read_record(folder)
        return cls(folder, about, rows, _samples(run.previews), manifest, finished)

    @property
    def name(self) -> str:
        """The run's name, or that of its folder."""
        return str(self.about.get("recipe", {}).get("name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        done, steps = self.rows[-1]["step"], self.about.get("steps")
        of_all = f" of {steps:,}" if steps else ""
        return f"{'finished' if self.finished else 'not finished'}: {done:,}{of_all} steps"

    def column(self, name: str) -> list[tuple[float, float]]:
        """Return tokens and value of each row that has the column."""
        return [(row["tokens"], row[name]) for row in self.rows if row.get(name) is not None]

    def figures(self) -> dict[str, Any]:
        """Return the figures that sum the run up, by name; those it lacks are None."""
        last = self.rows[-1]
        speeds = sorted(value for _, value in self.column("tokens_per_s"))
        return {
            "steps": last["step"],
            "tokens": last["tokens"],
            "loss_smooth": last.get("loss_smooth"),
            "val_loss": min((value for _, value in self.column("val_loss")), default=None),
            "tokens_per_s": speeds[len(speeds) // 2] if speeds else None,
            "mfu": last.get("mfu"),
            "peak_memory_gb": max((v for _, v in self.column("peak_memory_gb")), default=None),
            "skipped": last.get("skipped", 0),
            "spikes": len(self.column("spike")),
        }


def write_about(recipe: Recipe, model: ModelConfig, plan: TrainPlan) -> None:
    """Write ``about.json``: the recipe as it is resolved, the choices, and the system."""
    prefix = dataset_prefix(recipe)
    about = {
        "recipe": recipe.stated(),
        "model": summary(model),
        "flops_per_token": train_flops(model),
        "data": str(prefix),
        "steps": plan.schedule.steps,
        "plan": list(plan.lines),
        "system": _system(),
    }
    files.write_json(recipe.folder / ABOUT, about)


def _read_about(path: Path) -> dict[str, Any]:
    """Read what ``write_about`` wrote.

    Raises:
        DataError: it is damaged.
    """
    about = files.read_json(path) if path.exists() else {}
    kinds = {"recipe": dict, "model": str, "data": str, "steps": int, "plan": list, "system": dict}
    wrong = [name for name in kinds.keys() & about if not isinstance(about[name], kinds[name])]
    if wrong or not all(isinstance(line, str) for line in about.get("plan", [])):
        raise DataError(
            f"{min(wrong, default='plan')} is not what rwkvkit writes there",
            where=str(path),
            hint="the file is damaged: move it away",
        )
    return about


def _system() -> dict[str, str]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "rwkvkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "devices": ", ".join(devices) or f"CPU, {torch.get_num_threads()} threads",
    }


def _samples(path: Path) -> list[dict[str, Any]]:
    rows = files.read_json_lines(path)
    return [row for row in rows if {"step", "prompt", "text"} <= row.keys()]
