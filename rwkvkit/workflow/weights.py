"""The weights a run starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.data.build import Status
from rwkvkit.errors import RecipeError
from rwkvkit.model.checkpoint import check_config, read_checkpoint, write_checkpoint
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.grow import check_growth, grow
from rwkvkit.model.init import init_weights
from rwkvkit.recipe.schema import ModelSpec, Recipe
from rwkvkit.train.run_files import RunFiles


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

    @cached_property
    def sha256(self) -> str:
        """The hash of the file, which is read once: it may have many gigabytes."""
        return files.sha256(self.path)

    def status(self) -> Status:
        """Say whether the file is there and is what the recipe asks for.

        Raises:
            RecipeError: a file stands there that rwkvkit did not make.
            DataError: the record beside the file is damaged.
        """
        if self.spec.weights:
            return Status(True, f"the recipe starts from {self.path}")
        if not self.path.exists():
            return Status(False, f"there is no {self.path} yet")
        if not self._record_path.exists():
            raise self._strange("there are weights here that this recipe did not make")
        before = files.read_json(self._record_path)
        made = before.pop("sha256", None)
        if made is None:
            return Status(False, f"{self.path} was not finished")
        if self.sha256 != made:
            raise self._strange("these are not the weights that rwkvkit wrote here")
        if changes := differences(before, self._record()):
            return Status(False, f"{', '.join(changes)} since {self.path} was made")
        return Status(True, f"{self.path} is what the recipe asks for")

    def make(
        self, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Tensor]:
        """Draw the weights, write them, and return them.

        Args:
            progress: called with the tensors drawn so far and their number.

        Raises:
            RecipeError: ``grow_from`` does not exist, or a run has started from the weights that
                are there.
            DataError: ``grow_from`` is no checkpoint.
        """
        if self.path.exists() and RunFiles(self.path.parent).started:
            raise RecipeError(
                "a run has started from the weights here, and the recipe asks for others",
                where=str(self.path),
                hint="give the new run another name or run_dir",
            )
        if self.spec.grow_from:
            small = self._read(self.spec.grow_from, "model.grow_from")
            weights = grow(small, self.config, self.seed, progress, self.spec.grow_from)
        else:
            weights = init_weights(self.config, self.seed, progress)
        # The record comes first: whenever the file is there, so is a sign that it is ours.
        self._write_record(None)
        write_checkpoint(weights, self.path)
        vars(self).pop("sha256", None)  # that of a file that was here before
        self._write_record(self.sha256)
        return weights

    def check(self) -> None:
        """Check whatever can be checked before any work.

        Raises:
            RecipeError: sizes that are wrong or missing, or a file that does not exist.
            DataError: a checkpoint that cannot be read, or of another architecture.
        """
        config = self.config
        if self.spec.grow_from:
            small = self._read(self.spec.grow_from, "model.grow_from")
            check_growth(small, config, self.spec.grow_from)

    def _strange(self, what: str) -> RecipeError:
        return RecipeError(
            what,
            where=str(self.path),
            hint=f"to start from them, say `model: {{weights: {self.path}}}` and give the run "
            "another name; otherwise move the file away",
        )

    def _write_record(self, sha256: str | None) -> None:
        files.write_json(self._record_path, self._record() | {"sha256": sha256})

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _record(self) -> dict[str, Any]:
        source = self.spec.grow_from
        return {
            "model": self.config.model_dump(),
            "seed": self.seed,
            "grow_from": files.sha256(Path(source)) if source else None,
        }

    @staticmethod
    def _read(path: str, key: str) -> dict[str, Tensor]:
        if not Path(path).is_file():
            raise RecipeError(
                f"{path} does not exist (looked in {Path.cwd()})",
                where=key,
                hint="correct the path, or download it: published checkpoints are in the "
                "repositories rwkv7-g1, rwkv-7-world, rwkv-6-world and rwkv-5-world of "
                "https://huggingface.co/BlinkDL",
            )
        return read_checkpoint(Path(path))
