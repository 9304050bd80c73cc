"""Everything a training run needs to know before its first step, computed and explained."""

from dataclasses import dataclass

from rwkvkit.train.backend import Backend, choose_backend
from rwkvkit.train.batch import Sampler
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.device import Placement, choose_placement
from rwkvkit.train.graphs import Graphs
from rwkvkit.train.sampler import MINI_EPOCH_SAMPLES
from rwkvkit.train.schedule import Schedule

_NO_GRAPHS = Graphs(False, "cuda graphs off")


@dataclass(frozen=True)
class TrainPlan:
    """The choices of a run.

    Attributes:
        config: the recipe's settings.
        global_batch: samples an optimizer step.
        placement: device and precision.
        schedule: learning rate and weight decay by step.
        save_every: optimizer steps between checkpoints.
        lines: each choice with its reason, for people.
        backend: the engine.
        compile: whether torch.compile fuses the blocks.
        graphs: whether passes are recorded as CUDA graphs.
    """

    config: TrainConfig
    global_batch: int
    placement: Placement
    schedule: Schedule
    save_every: int
    lines: tuple[str, ...]
    backend: Backend
    compile: bool = False
    graphs: Graphs = _NO_GRAPHS


def plan_training(
    config: TrainConfig,
    samples: Sampler,
    *,
    begun_in: str | None = None,
    processes: int = 1,
    local_rank: int = 0,
) -> TrainPlan:
    """Make the choices that depend on the dataset and the machine.

    Args:
        config: the recipe's settings.
        samples: the data in the order of the run.
        begun_in: dtype of the run that is resumed, if one is.
        processes: how many train together.
        local_rank: number of this one on its machine.

    Raises:
        RecipeError: the machine lacks the device that the recipe asks for.
    """
    placement = choose_placement(config.device, config.precision, begun_in, local_rank)
    backend = choose_backend(config, placement, processes)
    batch = config.global_batch(processes)
    tokens_per_step = batch * samples.sample_tokens
    exit_tokens = None if config.total_steps else (config.my_exit_tokens or samples.once)
    schedule = Schedule(
        lr_init=config.lr_init,
        lr_final=config.lr_final,
        warmup_steps=config.warmup_steps,
        total_steps=config.total_steps,
        exit_tokens=exit_tokens,
        tokens_per_step=tokens_per_step if exit_tokens else None,
        weight_decay=config.weight_decay,
        weight_decay_final=config.weight_decay_final,
    )
    if config.total_steps:
        end = "total_steps in the recipe"
    elif config.my_exit_tokens:
        end = f"my_exit_tokens {config.my_exit_tokens:,} in the recipe"
    else:
        end = f"the dataset's {samples.once:,} tokens once"
    mini_epoch = max(1, MINI_EPOCH_SAMPLES // batch)
    tenth = max(1, schedule.steps // 10)
    save_every = config.save_every or min(mini_epoch, tenth)
    if config.save_every:
        save_reason = "save_every in the recipe"
    else:
        save_reason = "a mini-epoch" if mini_epoch <= tenth else "a tenth of the run"
    warmup: tuple[str, ...] = ()
    if config.warmup_steps >= schedule.steps:
        warmup = (
            f"warmup_steps {config.warmup_steps:,} in a run of {schedule.steps:,} steps: the "
            "learning rate never reaches lr_init",
        )
    lines = (
        *placement.reasons,
        backend.reason,
        f"global batch {batch} samples = micro_bsz {config.micro_bsz}"
        f" x accumulate_grad_batches {config.accumulate_grad_batches}"
        + (f" x {processes} processes" if processes > 1 else "")
        + f": {tokens_per_step:,.0f} tokens",
        *samples.lines,
        f"{schedule.steps:,} steps: {end}",
        *warmup,
        f"a checkpoint every {f'{save_every:,} steps' if save_every != 1 else 'step'}: "
        f"{save_reason}; the newest {config.keep} stay",
    )
    return TrainPlan(config, batch, placement, schedule, save_every, lines, backend)
