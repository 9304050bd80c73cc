"""A recipe's training run: what it is, whether it is done, and doing it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError

from rwkvkit import files
from rwkvkit.compare import differences
from rwkvkit.data.binidx import Binidx
from rwkvkit.data.build import Build, Status
from rwkvkit.data.contents import open_dataset
from rwkvkit.data.manifest import read_manifest
from rwkvkit.errors import RecipeError, SetupError
from rwkvkit.model.config import ModelConfig, reasons
from rwkvkit.recipe.dataset import dataset_prefix, make_build
from rwkvkit.recipe.schema import Recipe
from rwkvkit.train.adapt import check_tuning, result_name
from rwkvkit.train.batch import Sampler
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.group import Group, Solo, said_once
from rwkvkit.train.loop import train
from rwkvkit.train.observe import END_EARLY, Sink
from rwkvkit.train.orders import make_samples
from rwkvkit.train.plan import TrainPlan
from rwkvkit.train.profile import TRACE
from rwkvkit.train.run_files import RunFiles
from rwkvkit.train.run_record import RECORD, check_record, end_of_run, read_record, write_record
from rwkvkit.train.tokens import check_tokens
from rwkvkit.train.trackers import choose_trackers
from rwkvkit.workflow.choices import Choices
from rwkvkit.workflow.engine import make_engine
from rwkvkit.workflow.evaluation import Evaluations
from rwkvkit.workflow.forecast import memory_hint
from rwkvkit.workflow.history import ABOUT
from rwkvkit.workflow.identity import data_record, recipe_record
from rwkvkit.workflow.page import REPORT
from rwkvkit.workflow.prompts import check_tokenizer, encode_prompts
from rwkvkit.workflow.sinks import open_sinks
from rwkvkit.workflow.weights import InitialWeights

_BESIDE = (RECORD, ABOUT, REPORT, TRACE)  # further files of the folder


@dataclass(frozen=True)
class Run:
    """A recipe's training run.

    Attributes:
        recipe: the recipe.
        weights: what it starts from.
        settings: the recipe's ``train`` section.
        processes: how many train together.
    """

    recipe: Recipe
    weights: InitialWeights
    settings: TrainConfig
    processes: int = 1

    @classmethod
    def of(cls, recipe: Recipe, processes: int = 1) -> "Run":
        """Return the run of a recipe, with everything checked that can be before any work.

        Args:
            recipe: the recipe.
            processes: how many train together.

        Raises:
            RecipeError: the recipe lacks a section, asks for what cannot be, or its folder holds
                another run.
            DataError: a dataset or checkpoint that the recipe names is missing or damaged.
            SetupError: the run's folder cannot be written.
        """
        if recipe.train is None:
            raise RecipeError(
                "the recipe has no `train` section",
                where=recipe.name,
                hint="rwkvkit recipes show quickstart prints one",
            )
        files.check_writable(recipe.folder)
        run = cls(recipe, InitialWeights.of(recipe), recipe.train, processes)
        run.weights.check()
        if run.needs_base and not run.weights.spec.weights:
            raise RecipeError(
                f"{run.settings.tuning.method} tunes a checkpoint, and the recipe names none",
                where="train.tuning.method",
                hint="say `model: {weights: FILE.pth}`",
            )
        check_tuning(run.settings.tuning, run.model_config)
        run.evaluations.check()
        if recipe.sample:
            encode_prompts(recipe, [recipe.sample.prompt], run.model_config, "sample.prompt")
        run.choices.check()
        choose_trackers(run.settings.trackers)
        if recipe.prepare is None:
            run.data()
        if run.files.started:
            check_record(recipe.folder, {"recipe": run._recipe_record()})
            if run.settings.resume == "never":
                holds = "checkpoints" if run.files.saved else run.files.final.name
                raise RecipeError(
                    f"train.resume is never, and {recipe.folder} holds {holds}",
                    where="train.resume",
                    hint="give the new run another name or run_dir, or leave train.resume out",
                )
        return run

    def check_alike(self, group: Group) -> None:
        """See that all processes, which may stand on several machines, were given one recipe.

        Raises:
            RecipeError: one has another recipe; rank 0 says so.
            FailedElsewhere: the same, in the others.
        """
        first, *others = group.gather(self.recipe.stated())
        for rank, other in enumerate(others, 1):
            if changes := differences(first, other):
                raise said_once(
                    group,
                    RecipeError(
                        f"process {rank} has another recipe than process 0 ({', '.join(changes)})",
                        where=self.recipe.name,
                        hint="give all machines the same recipe and the same --set",
                    ),
                )

    @cached_property
    def model_config(self) -> ModelConfig:
        """The model with the recipe's dropout, and with states to tune if it asks for that.

        Raises:
            RecipeError: the architecture has no dropout.
        """
        stated = self.weights.config.model_dump() | {"dropout": self.settings.dropout}
        if self.settings.tuning.method == "state":
            stated["time_state"] = True
        try:
            return ModelConfig(**stated)
        except ValidationError as error:
            raise RecipeError(
                reasons(error), where="train.dropout", hint="leave train.dropout out"
            ) from error

    @property
    def files(self) -> RunFiles:
        """The files of the run."""
        return RunFiles(self.recipe.folder, result_name(self.settings.tuning))

    @property
    def needs_base(self) -> bool:
        """Whether the result is of use only together with the weights that the run starts from."""
        return self.settings.tuning.method != "full"

    @property
    def evaluations(self) -> Evaluations:
        """What is measured on the way."""
        return Evaluations(self.recipe, self.model_config)

    def build(self) -> Build | None:
        """Return the build of the dataset, or None if the recipe names one that exists.

        Raises:
            RecipeError: the run has started on a dataset that this build would replace, or the
                model does not know the tokens that it would make.
        """
        if self.recipe.prepare is None:
            return None
        build = make_build(self.recipe)
        status = build.status()
        if not status.up_to_date:
            check_tokenizer(self.recipe, self.model_config.vocab_size)
        made = read_manifest(build.prefix) if self.files.started and not status.up_to_date else None
        # Where only the output was lost or damaged, the same bytes are made again.
        if made and made.fingerprint != build.fingerprint():
            raise RecipeError(
                f"the run has started on a dataset that would be replaced ({status.reason})",
                where=str(build.prefix),
                hint="give the new run another name and prefix, or undo the change",
            )
        return build

    def data(self) -> Binidx:
        """Open the dataset.

        Raises:
            DataError: it is missing or damaged, or has a token outside the model's vocabulary.
        """
        data = open_dataset(dataset_prefix(self.recipe))
        check_tokens(data, self.model_config.vocab_size)
        return data

    def samples(self, data: Binidx) -> Sampler:
        """Put a dataset into the order of the run; see ``make_samples``.

        Raises:
            RecipeError: segments of a model with HeadQK.
        """
        if self.settings.sampling.order == "infctx" and self.model_config.head_qk:
            raise RecipeError(
                "a model with HeadQK cannot carry its state from segment to segment",
                where="train.sampling.order",
                hint="choose another order, or set model.head_qk to 0",
            )
        return make_samples(
            self.settings.sampling,
            data,
            ctx_len=self.recipe.ctx_len,
            vocab_size=self.model_config.vocab_size,
            global_batch=self.settings.global_batch(self.processes),
            seed=self.recipe.seed,
        )

    @property
    def choices(self) -> Choices:
        """What is chosen for the run."""
        return Choices(self.settings, self.model_config, self.recipe.ctx_len, self.processes)

    def plan(self, samples: Sampler, local_rank: int = 0) -> TrainPlan:
        """Make the run's choices for its samples; see ``plan_training``."""
        begun = read_record(self.recipe.folder).get("dtype") if self.files.started else None
        return self.choices.plan(samples, begun, local_rank)

    def status(self, data: Binidx, plan: TrainPlan) -> Status:
        """Say whether training is complete.

        Raises:
            RecipeError: the run's folder holds another run.
        """
        folder = self.recipe.folder
        if not self.files.started:
            return Status(False, f"no checkpoint in {folder}")
        check_record(folder, self._record(data, plan))
        end, final = read_record(folder).get("finished", {}), self.files.final
        if not final.exists() or (END_EARLY not in end and end.get("step") != plan.schedule.steps):
            return Status(False, f"{plan.schedule.steps:,} steps are not done yet")
        if not files.are_whole(final.parent, end.get("sha256", {})):
            rest = ", and comes from the newest checkpoint again" if self.files.saved else ""
            return Status(False, f"{final} is damaged{rest}")
        if END_EARLY in end:
            return Status(True, f"the run ended early: {end[END_EARLY]}")
        return Status(True, f"all {end['step']:,} steps are done: {final}")

    def finished(self) -> dict[str, Any]:
        """Return what is recorded of the end of a complete run; see ``end_of_run``."""
        end: dict[str, Any] = read_record(self.recipe.folder)["finished"]
        return end

    def train(
        self,
        data: Binidx,
        samples: Sampler,
        plan: TrainPlan,
        *,
        report: Callable[[str], None],
        sinks: Sequence[Sink] = (),
        group: Group | None = None,
    ) -> None:
        """Train to the end of the schedule; see ``rwkvkit.train.loop.train``.

        Every process of the run calls it.

        Raises:
            RecipeError: the run's folder holds another run.
            SetupError: another run is training in it, or memory ran out.
            FailedElsewhere: another process of this run failed.
        """
        group = group or Solo()
        folder = self.recipe.folder
        record = self._record(data, plan)
        own: list[Sink] = []
        setup = self.choices.setup(plan.placement)
        with ExitStack() as held, memory_hint(setup, plan.placement.device):
            with group.first():
                if group.rank == 0:
                    held.enter_context(self._locked())
                    if self.files.started:
                        check_record(folder, record)
                    write_record(folder, record)
                    for path in (*self.files.written, *(folder / name for name in _BESIDE)):
                        files.remove_temporaries(path)
                    sinks_of_run = open_sinks(
                        self.recipe, self.settings, self.model_config, plan, samples, report
                    )
                    own = held.enter_context(sinks_of_run)
            torch.manual_seed(self.recipe.seed + group.rank)
            train(
                make_engine(
                    self.choices,
                    plan,
                    (self.weights.path, record["weights"]),
                    seed=self.recipe.seed,
                    group=group,
                    report=report,
                ),
                samples,
                plan,
                self.files,
                report=report,
                sinks=[*own, *sinks],
                probes=self.evaluations.probes(
                    self.evaluations.samples(data), plan, self.files, group, report
                ),
                utilisation=self.choices.utilisation(plan.placement),
                group=group,
            )
            if group.rank > 0:
                return
            write_record(folder, record | {"finished": end_of_run(self.files, plan, samples)})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.recipe.folder.mkdir(parents=True, exist_ok=True)
        with files.locked(self.recipe.folder) as free:
            if not free:
                raise SetupError(
                    "another process is training in this folder",
                    where=str(self.recipe.folder),
                    hint="wait for it, or give this run another name or run_dir",
                )
            yield

    def _record(self, data: Binidx, plan: TrainPlan) -> dict[str, Any]:
        """Return all that decides the weights the run ends with."""
        return {
            "recipe": self._recipe_record(),
            "weights": self.weights.sha256,
            "data": data_record(data),
            "dtype": str(plan.placement.dtype).removeprefix("torch."),
        }

    def _recipe_record(self) -> dict[str, Any]:
        return recipe_record(self.recipe, self.weights.spec, self.settings, self.processes)
