"""What a recipe's run measures on held-out data, and which texts it samples on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rwkvkit.data.binidx import Binidx, idx_path
from rwkvkit.data.contents import open_dataset
from rwkvkit.data.finish import VALIDATION
from rwkvkit.data.stages import Split
from rwkvkit.errors import RecipeError
from rwkvkit.model.config import ModelConfig
from rwkvkit.recipe.dataset import dataset_prefix
from rwkvkit.recipe.schema import Recipe
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.documents import PackedSamples
from rwkvkit.train.evaluation import EvaluateConfig
from rwkvkit.train.group import Group
from rwkvkit.train.held_out import Evaluation
from rwkvkit.train.observe import Probe
from rwkvkit.train.orders import choose_order, validation_samples
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.previews import Previews
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.tokens import check_tokens
from rwkvkit.workflow.prompts import encode_prompts, recipe_tokenizer


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a recipe's run.

    Attributes:
        recipe: the recipe; it has a ``train`` section.
        model: the model.
    """

    recipe: Recipe
    model: ModelConfig

    def check(self) -> None:
        """Check what can be before any work.

        Raises:
            RecipeError: the recipe asks for what cannot be.
            DataError: the held-out dataset that it names is missing or damaged, or has a token
                outside the model's vocabulary.
        """
        config = self._config
        if config.data:
            check_tokens(open_dataset(config.data), self.model.vocab_size)
        splits = any(isinstance(stage, Split) for stage in self.recipe.prepare or [])
        if config.patience and not (splits or self._prefix):
            raise RecipeError(
                "there is no held-out data whose loss could stop improving",
                where="train.evaluate.patience",
                hint="add a `split` stage, or name a dataset in train.evaluate.data",
            )
        self._prompt_ids()

    def samples(self, data: Binidx) -> PackedSamples | None:
        """Return the held-out samples, None if there is no held-out token to predict.

        Args:
            data: the dataset that is trained on; the order of its samples counts here too.

        Raises:
            DataError: the held-out dataset is damaged.
        """
        if self._prefix is None:
            return None
        held_out = open_dataset(self._prefix)
        if held_out.n_tokens < 2 or held_out.sizes.max() < 2:
            return None
        sampling = self._train.sampling
        return validation_samples(
            choose_order(sampling, data)[0],
            sampling,
            held_out,
            ctx_len=self.recipe.ctx_len,
            vocab_size=self.model.vocab_size,
            seed=self.recipe.seed,
        )

    def line(self, samples: PackedSamples | None, plan: TrainPlan) -> str:
        """Say what will be evaluated, for people."""
        if samples is None:
            return "no held-out data: a `split` stage or train.evaluate.data gives some"
        config = self._config
        count = min(config.max_samples, len(samples.rows))
        every = config.every or plan.save_every
        text = f"val_loss every {f'{every:,} steps' if every != 1 else 'step'} on {count:,}"
        text += f" of {len(samples.rows):,} samples of {self._prefix}"
        if config.patience:
            text += f"; the run ends after {config.patience} without a smaller one"
        return text

    def probes(
        self,
        samples: PackedSamples | None,
        plan: TrainPlan,
        files: RunFiles,
        group: Group,
        report: Callable[[str], None],
    ) -> list[Probe]:
        """Return the probes of the run.

        Args:
            samples: from ``samples``.
            plan: the choices of the run.
            files: of the run.
            group: its processes.
            report: takes lines for people.
        """
        config = self._config
        every, steps = config.every or plan.save_every, plan.schedule.steps
        probes: list[Probe] = []
        if samples is not None:
            probes.append(
                Evaluation(
                    samples,
                    every=every,
                    steps=steps,
                    micro_bsz=self._train.micro_bsz,
                    max_samples=config.max_samples,
                    patience=config.patience,
                    metrics=files.metrics,
                    best=files.best,
                    group=group,
                    report=report,
                )
            )
        if config.prompts:
            probes.append(
                Previews(
                    self._prompt_ids(),
                    recipe_tokenizer(self.recipe),
                    config,
                    every=every,
                    steps=steps,
                    path=files.previews,
                    group=group,
                    report=report,
                )
            )
        return probes

    @property
    def _train(self) -> TrainConfig:
        assert self.recipe.train is not None
        return self.recipe.train

    @property
    def _config(self) -> EvaluateConfig:
        return self._train.evaluate

    @property
    def _prefix(self) -> Path | None:
        """The held-out dataset: the one named, or the one that a split left, if it is there."""
        if self._config.data:
            return Path(self._config.data)
        trained = dataset_prefix(self.recipe)
        prefix = trained.with_name(idx_path(trained).stem + VALIDATION)
        return prefix if idx_path(prefix).exists() else None

    def _prompt_ids(self) -> dict[str, list[int]]:
        return encode_prompts(
            self.recipe, self._config.prompts, self.model, "train.evaluate.prompts"
        )
