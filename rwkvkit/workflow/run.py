"""A recipe's training run: what it is, whether it is done, and doing it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from pydantic import ValidationError

from rwkvkit import files
from rwkvkit.data.binidx import Binidx, open_binidx
from rwkvkit.data.build import Build, Status
from rwkvkit.data.manifest import read_manifest
from rwkvkit.errors import RecipeError, SetupError
from rwkvkit.model.checkpoint import build_model, read_checkpoint
from rwkvkit.model.config import ModelConfig, reasons
from rwkvkit.model.flops import train_flops
from rwkvkit.ops.inputs import Choice, Impl
from rwkvkit.recipe.dataset import dataset_prefix, make_build
from rwkvkit.recipe.schema import Recipe
from rwkvkit.train.adapt import apply_tuning, check_tuning, rate_hint, result_name
from rwkvkit.train.backend import choose_backend
from rwkvkit.train.batch import Sampler
from rwkvkit.train.compile import choose_compile
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement, choose_placement, peak_flops
from rwkvkit.train.engine import Engine, TorchEngine
from rwkvkit.train.estimate import Setup
from rwkvkit.train.graphs import Graphs, choose_graphs
from rwkvkit.train.group import Group, Solo
from rwkvkit.train.loop import RunFiles, train
from rwkvkit.train.metrics import read_metrics
from rwkvkit.train.observe import END_EARLY, Sink
from rwkvkit.train.operator import choose_elementwise, choose_loss, choose_wkv
from rwkvkit.train.orders import make_samples
from rwkvkit.train.plan import TrainPlan, plan_training
from rwkvkit.train.record import check_record, read_record, write_record
from rwkvkit.train.recorder import record_passes
from rwkvkit.train.tokens import check_tokens
from rwkvkit.train.trackers import choose_trackers
from rwkvkit.workflow.evaluation import Evaluations
from rwkvkit.workflow.forecast import Forecast, change_to_fit, forecast, setup_of
from rwkvkit.workflow.identity import data_record, recipe_record
from rwkvkit.workflow.prompts import check_tokenizer, encode_prompts
from rwkvkit.workflow.sinks import open_sinks
from rwkvkit.workflow.weights import InitialWeights


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
        placement = choose_placement(run.settings.device, run.settings.precision)
        choose_backend(run.settings, placement, processes)
        run._wkv(placement)
        if run.settings.cuda_graphs is True:
            run._graphs(placement, compiled=False)
        choose_trackers(run.settings.trackers)
        if recipe.prepare is None:
            run.data()
        if run.files.started:
            check_record(recipe.folder, {"recipe": run._recipe_record()})
        return run

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
        data = open_binidx(dataset_prefix(self.recipe))
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

    def plan(self, samples: Sampler, local_rank: int = 0) -> TrainPlan:
        """Make the run's choices for its samples; see ``plan_training``."""
        begun = read_record(self.recipe.folder).get("dtype") if self.files.started else None
        plan = plan_training(
            self.settings,
            samples,
            begun_in=begun,
            processes=self.processes,
            local_rank=local_rank,
        )
        tokens = samples.tokens(plan.schedule.steps * plan.global_batch)
        elementwise = self._elementwise(plan.placement)
        compiled = choose_compile(
            self.settings.compile,
            plan.placement.device,
            self.model_config,
            tokens,
            fused=elementwise.impl == "fused",
            zero=plan.backend.zero,
        )
        graphs = self._graphs(plan.placement, compiled=compiled.on)
        tuning = check_tuning(self.settings.tuning, self.model_config)
        wkv = self._wkv(plan.placement)
        lines = (
            *plan.lines,
            wkv.reason,
            elementwise.reason,
            choose_loss(wkv, plan.placement).reason,
            compiled.reason,
            graphs.reason,
            *tuning,
            *rate_hint(self.settings),
        )
        return replace(plan, compile=compiled.on, graphs=graphs, lines=lines)

    def _wkv(self, placement: Placement) -> Choice:
        return choose_wkv(self.settings.wkv, placement, self.model_config, self.recipe.ctx_len)

    def _elementwise(self, placement: Placement) -> Choice:
        return choose_elementwise(self.settings.elementwise, placement, self.model_config)

    def _graphs(self, placement: Placement, *, compiled: bool) -> Graphs:
        backend = choose_backend(self.settings, placement, self.processes)
        return choose_graphs(
            self.settings,
            self._setup(placement),
            placement.device,
            engine=backend.engine,
            compiled=compiled,
        )

    def _impl(self, placement: Placement) -> Impl:
        """Decide before torch.compile sees the model; on a CPU each call decides for itself."""
        on_gpu = placement.device.type == "cuda"
        return cast("Impl", self._wkv(placement).impl) if on_gpu else self.settings.wkv

    def forecast(self, plan: TrainPlan | None = None) -> Forecast:
        """Estimate memory and speed, before or after the choices that need the dataset."""
        settings = self.settings
        place = plan.placement if plan else choose_placement(settings.device, settings.precision)
        return forecast(
            self._setup(place),
            place.device,
            compiled=bool(plan and plan.compile),
            recorded=bool(plan and plan.graphs.on),
        )

    def _setup(self, placement: Placement) -> Setup:
        setup = setup_of(self.settings, self.model_config, self.recipe.ctx_len, placement)
        backend = choose_backend(self.settings, placement, self.processes)
        return replace(
            setup, zero=backend.zero, world=self.processes, offload=self.settings.offload
        )

    def status(self, data: Binidx, plan: TrainPlan) -> Status:
        """Say whether training is complete.

        Raises:
            RecipeError: the run's folder holds another run.
        """
        folder = self.recipe.folder
        if not self.files.started:
            return Status(False, f"{folder} holds no checkpoint yet")
        check_record(folder, self._record(data, plan))
        end = read_record(folder).get("finished", {})
        if self.files.final.exists() and END_EARLY in end:
            return Status(True, f"the run ended early: {end[END_EARLY]}")
        if self.files.final.exists() and end.get("step") == plan.schedule.steps:
            return Status(True, f"all {end['step']:,} steps are done: {self.files.final}")
        return Status(False, f"{plan.schedule.steps:,} steps are not done yet")

    def finished(self) -> dict[str, Any]:
        """Return ``step``, ``tokens`` and ``loss`` at the end of a complete run.

        ``skipped_steps`` counts those that changed nothing, if any; ``end_early`` says why, where
        it ended before its last step.
        """
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
        with ExitStack() as held, self._memory_hint(plan):
            with group.first():
                if group.rank == 0:
                    held.enter_context(self._locked())
                    if self.files.started:
                        check_record(folder, record)
                    write_record(folder, record)
                    for path in (self.files.final, self.files.metrics, self.files.loss_curve):
                        files.remove_temporaries(path)
                    sinks_of_run = open_sinks(
                        self.recipe, self.settings, self.model_config, plan, samples, report
                    )
                    own = held.enter_context(sinks_of_run)
            torch.manual_seed(self.recipe.seed + group.rank)
            train(
                self._engine(plan, record["weights"], group, report),
                samples,
                plan,
                self.files,
                report=report,
                sinks=[*own, *sinks],
                probes=self.evaluations.probes(
                    self.evaluations.samples(data), plan, self.files, group, report
                ),
                utilisation=self._utilisation(plan),
                group=group,
            )
            if group.rank > 0:
                return
            rows = read_metrics(self.files.metrics)
            loss = next(row["loss"] for row in reversed(rows) if row["loss"] is not None)
            end = {"step": rows[-1]["step"], "tokens": rows[-1]["tokens"], "loss": loss}
            if skipped := rows[-1].get("skipped"):
                end["skipped_steps"] = skipped
            end |= {key: rows[-1][key] for key in (END_EARLY,) if key in rows[-1]}
            write_record(folder, record | {"finished": end})

    @contextmanager
    def _memory_hint(self, plan: TrainPlan) -> Iterator[None]:
        """Turn running out of memory into an error that says what would fit."""
        try:
            yield
        except RuntimeError as error:  # on a CPU torch has no class of its own for it
            if not isinstance(error, torch.cuda.OutOfMemoryError) and "allocate" not in str(error):
                raise
            raise SetupError(
                f"out of memory: {str(error).splitlines()[0]}",
                where="train",
                hint=change_to_fit(self._setup(plan.placement), plan.placement.device),
            ) from error

    def _utilisation(self, plan: TrainPlan) -> float | None:
        peak = peak_flops(plan.placement)
        if self.settings.tuning.method != "full":  # frozen weights need less arithmetic
            return None
        return None if peak is None else train_flops(self.model_config) / peak / self.processes

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

    def _engine(
        self, plan: TrainPlan, sha256: str, group: Group, report: Callable[[str], None]
    ) -> Engine:
        sharded = plan.backend.zero == 3
        # ZeRO-3 takes its part of weight after weight out of the file; adapters change weights.
        mapped = sharded and not self.settings.tuning.is_adapter
        model = build_model(
            self.model_config,
            read_checkpoint(self.weights.path),
            grad_cp=self.settings.grad_cp,
            impl=self._impl(plan.placement),
            where=str(self.weights.path),
            copy=not mapped,
        )
        base = {"path": str(self.weights.path), "sha256": sha256}
        portion = apply_tuning(
            model,
            self.settings.tuning,
            base,
            # ZeRO-3 cuts the weights up on the host: as a whole they may not fit a GPU.
            device=torch.device("cpu") if sharded else plan.placement.device,
            dtype=plan.placement.dtype,
            seed=self.recipe.seed,
            convert=not mapped,
        )
        if self._elementwise(plan.placement).impl == "fused":
            model.fuse_elementwise()
        if plan.compile:
            # Padded batches have up to 16 widths; a graph for each would be more than torch keeps.
            model.compile_blocks(dynamic=self.settings.sampling.order == "padded")
        dtype, device = plan.placement.dtype, plan.placement.device
        if plan.backend.engine == "torch":
            recording = partial(record_passes, device, report, demanded=plan.graphs.demanded)
            return TorchEngine(
                model.train(),
                self.settings,
                dtype,
                portion,
                group,
                recording if plan.graphs.on else None,
            )
        from rwkvkit.train.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(
            model.train(), self.settings, plan.backend, dtype, device, portion, group
        )

    def _record(self, data: Binidx, plan: TrainPlan) -> dict[str, Any]:
        """Return all that decides the weights the run ends with."""
        return {
            "recipe": self._recipe_record(),
            "weights": files.sha256(self.weights.path),
            "data": data_record(data),
            "dtype": str(plan.placement.dtype).removeprefix("torch."),
        }

    def _recipe_record(self) -> dict[str, Any]:
        return recipe_record(self.recipe, self.weights.spec, self.settings, self.processes)
