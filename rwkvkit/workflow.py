"""What a recipe needs done once its data is there: initial weights, then training."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.data.binidx import Binidx, open_binidx
from rwkvkit.data.build import Status
from rwkvkit.data.manifest import read_manifest
from rwkvkit.errors import RecipeError, SetupError
from rwkvkit.model.checkpoint import (
    build_model,
    check_config,
    read_checkpoint,
    write_checkpoint,
)
from rwkvkit.model.config import ModelConfig, reasons
from rwkvkit.model.grow import grow
from rwkvkit.model.init import init_weights
from rwkvkit.model.rwkv import RWKV
from rwkvkit.recipe.dataset import dataset_prefix
from rwkvkit.recipe.schema import ModelSpec, Recipe
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement
from rwkvkit.train.loop import Progress, RunFiles, train
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.plan import TrainPlan, plan_training
from rwkvkit.train.record import check_record, write_record


@dataclass(frozen=True)
class InitialWeights:
    """The weights a run starts from: a checkpoint the recipe names, or new ones beside the run.

    Attributes:
        spec: the recipe's ``model`` section.
        seed: the recipe's seed.
        path: the file.
    """

    spec: ModelSpec
    seed: int
    path: Path

    @classmethod
    def of(cls, recipe: Recipe) -> "InitialWeights":
        """Return the initial weights of a recipe.

        Raises:
            RecipeError: it has no ``model`` section.
        """
        if recipe.model is None:
            raise RecipeError(
                "the recipe has no `model` section",
                where=recipe.name,
                hint="add one, such as `model: {size: x070-0.1b}`",
            )
        given = recipe.model.weights
        return cls(
            recipe.model,
            recipe.seed,
            Path(given) if given else recipe.folder / "rwkv-init.pth",
        )

    @cached_property
    def config(self) -> ModelConfig:
        """The model's sizes, read off a checkpoint or stated by the recipe.

        Raises:
            RecipeError: the recipe contradicts the checkpoint, or states too little.
            DataError: the checkpoint cannot be read.
        """
        if self.spec.weights is None:
            return self.spec.resolve()
        weights = self._read(self.spec.weights, "model.weights")
        return check_config(self.spec.given(), weights, self.spec.weights)

    def status(self) -> Status:
        """Say whether the file is there and is what the recipe asks for.

        Raises:
            RecipeError: a file stands there that rwkvkit did not make.
        """
        if self.spec.weights:
            return Status(True, f"the recipe starts from {self.path}")
        if not self.path.exists():
            return Status(False, f"there is no {self.path} yet")
        if not self._record_path.exists():
            raise RecipeError(
                "there are weights here that this recipe did not make",
                where=str(self.path),
                hint=f"to start from them, say `model: {{weights: {self.path}}}`; "
                "otherwise move the file away",
            )
        before = json.loads(self._record_path.read_text(encoding="utf-8"))
        made = before.pop("sha256")
        if changes := differences(before, self._record()):
            return Status(False, f"{', '.join(changes)} since {self.path} was made")
        if files.sha256(self.path) != made:
            return Status(False, f"the content of {self.path} has changed")
        return Status(True, f"{self.path} is what the recipe asks for")

    def make(
        self, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Tensor]:
        """Draw the weights, write them, and return them.

        Args:
            progress: called with the tensors drawn so far and their number.

        Raises:
            RecipeError: ``grow_from`` does not exist.
            DataError: ``grow_from`` is no checkpoint.
        """
        if self.spec.grow_from:
            small = self._read(self.spec.grow_from, "model.grow_from")
            weights = grow(small, self.config, self.seed, progress)
        else:
            weights = init_weights(self.config, self.seed, progress)
        # The record comes first: whenever the file is there, so is a sign that it is ours.
        self._write_record(None)
        write_checkpoint(weights, self.path)
        self._write_record(files.sha256(self.path))
        return weights

    def _write_record(self, sha256: str | None) -> None:
        record = self._record() | {"sha256": sha256}
        files.write_text(self._record_path, json.dumps(record, indent=1) + "\n")

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _record(self) -> dict[str, Any]:
        source = self.spec.grow_from
        return {
            "model": self.config.model_dump(),
            "seed": self.seed,
            "grow_from": files.sha256(Path(source))
            if source and Path(source).is_file()
            else source,
        }

    @staticmethod
    def _read(path: str, key: str) -> dict[str, Tensor]:
        if not Path(path).is_file():
            raise RecipeError(
                f"{path} does not exist (looked in {Path.cwd()})",
                where=key,
                hint="download the checkpoint, or correct the path",
            )
        return read_checkpoint(Path(path))


@dataclass(frozen=True)
class Run:
    """A recipe's training run.

    Attributes:
        recipe: the recipe.
        weights: what it starts from.
        settings: the recipe's ``train`` section.
    """

    recipe: Recipe
    weights: InitialWeights
    settings: TrainConfig

    @classmethod
    def of(cls, recipe: Recipe) -> "Run":
        """Return the run of a recipe, checked against what its folder holds.

        Raises:
            RecipeError: the recipe lacks a section, or the folder holds another run.
        """
        if recipe.train is None:
            raise RecipeError(
                "the recipe has no `train` section",
                where=recipe.name,
                hint="rwkvkit recipes show quickstart prints one",
            )
        run = cls(recipe, InitialWeights.of(recipe), recipe.train)
        check_record(recipe.folder, {"recipe": run._recipe_record()})
        _ = run.model_config  # what is wrong with the model is said before any work
        return run

    @cached_property
    def model_config(self) -> ModelConfig:
        """The model with the recipe's dropout.

        Raises:
            RecipeError: the sizes are wrong, or the architecture has no dropout.
            DataError: the checkpoint to start from cannot be read.
        """
        stated = self.weights.config.model_dump() | {"dropout": self.settings.dropout}
        try:
            return ModelConfig(**stated)
        except ValidationError as error:
            raise RecipeError(
                reasons(error), where="train.dropout", hint="leave train.dropout out"
            ) from error

    @property
    def files(self) -> RunFiles:
        """The files of the run."""
        return RunFiles(self.recipe.folder)

    def data(self) -> Binidx:
        """Open the dataset.

        Raises:
            DataError: it is missing or damaged.
        """
        return open_binidx(dataset_prefix(self.recipe))

    def plan(self, n_tokens: int) -> TrainPlan:
        """Make the run's choices for a dataset of ``n_tokens``; see ``plan_training``."""
        return plan_training(self.settings, n_tokens=n_tokens, ctx_len=self.recipe.ctx_len)

    def status(self, plan: TrainPlan) -> Status:
        """Say whether training is complete."""
        if not self.files.final.exists():
            return Status(False, f"there is no {self.files.final} yet")
        steps = plan.schedule.steps
        last = self.files.checkpoints / f"step-{steps:08d}"
        if not last.is_dir():
            return Status(False, f"the run has no checkpoint of step {steps:,} yet")
        return Status(True, f"all {steps:,} steps are done: {self.files.final}")

    def last_metrics(self) -> dict[str, float]:
        """Return the last row of the run's metrics."""
        return read_metrics(self.files.metrics)[-1]

    def train(
        self,
        data: Binidx,
        plan: TrainPlan,
        *,
        report: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Progress | None:
        """Train to the end of the schedule; see ``rwkvkit.train.loop.train``.

        Raises:
            RecipeError: the run's folder holds another run.
            SetupError: another process is training in it.
        """
        folder = self.recipe.folder
        record = {
            "recipe": self._recipe_record(),
            "data": self._data_record(data, plan),
            "dtype": str(plan.placement.dtype).removeprefix("torch."),
        }
        with files.locked(folder) as free:
            if not free:
                raise SetupError(
                    "another process is training in this folder",
                    where=str(folder),
                    hint="wait for it, or give this run another name or run_dir",
                )
            check_record(folder, record)
            write_record(folder, record)
            return train(
                self._model(plan.placement),
                data,
                plan,
                self.files,
                seed=self.recipe.seed,
                report=report,
                progress=progress,
            )

    def _model(self, placement: Placement) -> RWKV:
        return build_model(
            self.model_config,
            read_checkpoint(self.weights.path),
            dtype=placement.dtype,
            device=placement.device,
            grad_cp=self.settings.grad_cp,
            impl=self.settings.wkv,
            where=str(self.weights.path),
        )

    def _recipe_record(self) -> dict[str, Any]:
        free = {"device", "wkv", "grad_cp", "save_every", "keep", "precision"}
        batch = {"micro_bsz", "accumulate_grad_batches"}
        return {
            "seed": self.recipe.seed,
            "ctx_len": self.recipe.ctx_len,
            "prepare": [{stage.key: stage.model_dump()} for stage in self.recipe.prepare or []],
            "data": self.recipe.data,
            "model": self.weights.spec.model_dump(exclude_none=True),
            "train": self.settings.model_dump(exclude=free | batch)
            | {"global_batch": self.settings.global_batch},
        }

    def _data_record(self, data: Binidx, plan: TrainPlan) -> dict[str, Any]:
        manifest = read_manifest(data.prefix)
        outputs = manifest.outputs if manifest else []
        return {
            "n_tokens": data.n_tokens,
            "magic_prime": plan.magic_prime,
            "sha256": {Path(file.path).suffix: file.sha256 for file in outputs},
        }
