"""The ``train`` section of a recipe."""

from typing import Literal

from pydantic import Field, model_validator

from rwkvkit.config import Config, Count
from rwkvkit.train.evaluation import EvaluateConfig
from rwkvkit.train.guard import GuardConfig
from rwkvkit.train.sampling import SamplingConfig
from rwkvkit.train.tuning import TuningConfig


class TrainConfig(Config):
    """How a model is trained; names and defaults follow the reference trainer."""

    micro_bsz: int = Field(ge=1, le=1 << 20)
    """Samples in one forward and backward pass of each process."""
    accumulate_grad_batches: int = Field(default=1, ge=1, le=1 << 20)
    """Passes whose gradients add up to one optimizer step."""
    lr_init: float = Field(ge=0)
    """Learning rate after warmup."""
    lr_final: float = Field(ge=0)
    """Learning rate at the end of the run."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps over which the learning rate rises from a hundredth."""
    my_exit_tokens: Count | None = None
    """Tokens after which the run ends, on a cosine; the dataset's own number unless given."""
    total_steps: Count | None = None
    """Optimizer steps after which the run ends, on an exponential; instead of tokens."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Adam's decay of the second moment."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon (the reference's pretraining demo uses 1e-18)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the matrices."""
    weight_decay_final: float | None = Field(default=None, gt=0)
    """Weight decay at the end of the run, reached exponentially."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after the embedding and both halves of a block (x052 and x060)."""
    grad_cp: bool | Literal["selective"] = False
    """Keep only each block's input and compute the rest again in the backward pass; ``selective``
    keeps also what a WKV kernel returns, which costs memory and saves running it twice."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile of the blocks; auto does it on a GPU where the run is long enough to pay."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Record each pass once as a CUDA graph, which then starts as one; auto does it where starting
    the operations one by one would take long beside their work, as it does for small models."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 keep fp32 masters; auto takes bf16 where the device computes in it. fp16 (with
    loss scaling, through DeepSpeed) is for GPUs that cannot compute in bf16."""
    engine: Literal["auto", "torch", "deepspeed"] = "auto"
    """The training engine; auto takes DeepSpeed for several GPUs, or where a setting needs it."""
    zero: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed splits among the processes: 1 the optimizer, 2 the gradients too, 3 the
    weights too; 0 nothing. 2 unless given."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in the host's memory: the optimizer, or also the weights (ZeRO-3)."""
    deepspeed: str | None = None
    """A file of DeepSpeed settings (.json, .yaml) or the name of a built-in one; it may not
    contradict the recipe."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    wkv: Literal["auto", "cuda", "precise", "chunked", "naive"] = "auto"
    """The WKV operator: kernels on tensor cores, kernels in fp32, PyTorch products or a loop."""
    elementwise: Literal["auto", "fused", "torch"] = "auto"
    """How x070 computes what is between its matrix products: hand-written kernels, or PyTorch; auto
    takes the kernels on a GPU that runs them."""
    save_every: Count | None = None
    """Optimizer steps between checkpoints; a mini-epoch or a tenth of the run unless given."""
    resume: Literal["auto", "never"] = "auto"
    """Whether a run whose folder holds checkpoints continues from the newest, or is refused."""
    keep: int = Field(default=3, ge=1)
    """How many of the newest checkpoints stay."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] | None = None
    """Who gets the rows of metrics.jsonl: ``tensorboard``, ``wandb``, ``trackio``, or ``[]`` for
    none; tensorboard, if it is installed, unless given."""
    tracker_project: str = Field(default="rwkvkit", min_length=1)
    """The project under which wandb and trackio show the run."""
    profile: Count | None = None
    """Steps to record with torch's profiler, after a few others, into trace.json."""
    guards: GuardConfig = GuardConfig()
    """What is done about gradients that are not finite and about loss spikes."""
    tuning: TuningConfig = TuningConfig()
    """Which part of the model is trained; all of it unless given."""
    sampling: SamplingConfig = SamplingConfig()
    """Which tokens make a sample, and in which order."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured on held-out data during training, and which texts are sampled."""

    @model_validator(mode="after")
    def _one_end(self) -> "TrainConfig":
        if self.my_exit_tokens is not None and self.total_steps is not None:
            raise ValueError("my_exit_tokens and total_steps both end the run: give one")
        if self.weight_decay_final is not None and self.weight_decay == 0:
            raise ValueError("weight_decay_final needs a weight_decay above 0 to start from")
        return self

    def global_batch(self, processes: int = 1) -> int:
        """Return the samples of an optimizer step, over all processes."""
        return self.micro_bsz * self.accumulate_grad_batches * processes
