"""What is chosen for a run from its settings, its model and the device it finds."""

from dataclasses import dataclass, replace
from typing import cast

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.flops import train_flops
from rwkvkit.ops.inputs import Choice, Impl
from rwkvkit.train.adapt import check_tuning, rate_hint
from rwkvkit.train.backend import Backend, choose_backend, reduce_bucket
from rwkvkit.train.batch import Sampler
from rwkvkit.train.compile import choose_compile
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement, choose_placement, peak_flops
from rwkvkit.train.estimate import Setup
from rwkvkit.train.graphs import Graphs, choose_graphs
from rwkvkit.train.operator import choose_elementwise, choose_loss, choose_wkv
from rwkvkit.train.plan import TrainPlan, plan_training
from rwkvkit.workflow.forecast import Forecast, forecast, setup_of


@dataclass(frozen=True)
class Choices:
    """The choices of a run, each with its reason.

    Attributes:
        settings: the recipe's ``train`` section.
        model: the model with its dropout and states.
        ctx_len: positions of a sample.
        processes: how many train together.
    """

    settings: TrainConfig
    model: ModelConfig
    ctx_len: int
    processes: int

    def check(self) -> None:
        """Check what can be before there is data.

        Raises:
            RecipeError: a setting asks for what this device, engine or model does not have.
        """
        placement = choose_placement(self.settings.device, self.settings.precision)
        self._backend(placement)
        self._wkv(placement)
        if self.settings.cuda_graphs is True:
            self._graphs(placement, compiled=False)

    def plan(self, samples: Sampler, begun_in: str | None, local_rank: int) -> TrainPlan:
        """Make the choices for a run's samples; see ``plan_training``.

        Args:
            samples: in the order of the run.
            begun_in: the dtype that the run was begun in, if it was.
            local_rank: this process among those of its machine.
        """
        settings = self.settings
        plan = plan_training(
            settings, samples, begun_in=begun_in, processes=self.processes, local_rank=local_rank
        )
        placement = plan.placement
        wkv, elementwise = self._wkv(placement), self.elementwise(placement)
        compiled = choose_compile(
            settings.compile,
            placement.device,
            self.model,
            samples.tokens(plan.schedule.steps * plan.global_batch),
            fused=elementwise.impl == "fused",
            zero=plan.backend.zero,
        )
        graphs = self._graphs(placement, compiled=compiled.on)
        lines = (
            *plan.lines,
            wkv.reason,
            elementwise.reason,
            choose_loss(wkv, placement).reason,
            compiled.reason,
            graphs.reason,
            *check_tuning(settings.tuning, self.model),
            *rate_hint(settings),
        )
        return replace(plan, compile=compiled.on, graphs=graphs, lines=lines)

    def forecast(self, plan: TrainPlan | None = None) -> Forecast:
        """Estimate memory and speed, before or after the choices that need the dataset."""
        settings = self.settings
        place = plan.placement if plan else choose_placement(settings.device, settings.precision)
        return forecast(
            self.setup(place),
            place.device,
            compiled=bool(plan and plan.compile),
            recorded=bool(plan and plan.graphs.on),
        )

    def setup(self, placement: Placement) -> Setup:
        """Return what decides the memory and speed of the run's passes."""
        backend = self._backend(placement)
        return replace(
            setup_of(self.settings, self.model, self.ctx_len, placement),
            zero=backend.zero,
            world=self.processes,
            offload=self.settings.offload,
            bucket=reduce_bucket(backend),
        )

    def utilisation(self, placement: Placement) -> float | None:
        """Return the share of the hardware's peak that one token a second takes; None: unknown."""
        peak = peak_flops(placement)
        if peak is None or self.settings.tuning.method != "full":
            return None  # frozen weights need less arithmetic
        return train_flops(self.model) / peak / self.processes

    def impl(self, placement: Placement) -> Impl:
        """Decide before torch.compile sees the model; on a CPU each call decides for itself."""
        on_gpu = placement.device.type == "cuda"
        return cast("Impl", self._wkv(placement).impl) if on_gpu else self.settings.wkv

    def elementwise(self, placement: Placement) -> Choice:
        """Choose between kernels and PyTorch for what lies between the matrix products."""
        return choose_elementwise(self.settings.elementwise, placement, self.model)

    def _wkv(self, placement: Placement) -> Choice:
        return choose_wkv(self.settings.wkv, placement, self.model, self.ctx_len)

    def _backend(self, placement: Placement) -> Backend:
        return choose_backend(self.settings, placement, self.processes)

    def _graphs(self, placement: Placement, *, compiled: bool) -> Graphs:
        return choose_graphs(
            self.settings,
            self.setup(placement),
            placement.device,
            engine=self._backend(placement).engine,
            compiled=compiled,
        )
