"""Sections of ``gpu_check.py``: whole training steps."""

import argparse
import gc
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from gpu_timing import Row, timed

from rwkvkit.model.config import ModelConfig
from rwkvkit.model.rwkv import RWKV
from rwkvkit.ops.inputs import Impl

_CATEGORIES = (
    ("wkv", r"wkv"),
    ("elementwise by hand", r"shift_mix|prepare_keys|residual_value|norm_gate|relu_squared"),
    ("cross entropy", r"cross_entropy"),
    ("products", r"gemm|nvjet|cutlass|cublas|xmma|aten::(mm|addmm|bmm|linear)"),
    ("optimizer", r"adam|multi_tensor|foreach"),
    ("norms", r"norm"),
)


def steps(settings: argparse.Namespace) -> Iterator[Row]:
    """Whole steps of an x070 with all kernels: tokens/s, MFU, memory, where the time goes."""
    return _all_steps(settings, compiled=False)


def compiled_steps(settings: argparse.Namespace) -> Iterator[Row]:
    """The same with the elementwise work in plain PyTorch, and the blocks compiled."""
    return _all_steps(settings, compiled=True)


@dataclass(frozen=True)
class _Size:
    n_layer: int
    n_embd: int
    samples: int
    ctx_len: int
    grad_cp: bool = False

    def __str__(self) -> str:
        return f"L{self.n_layer}-C{self.n_embd} b{self.samples} T{self.ctx_len}"


def _all_steps(settings: argparse.Namespace, *, compiled: bool) -> Iterator[Row]:
    if settings.tiny:
        sizes = [_Size(2, 64, 2, 32)]
    elif compiled:  # one: compiling takes its time; half the batch: it keeps more than the kernels
        sizes = [_Size(24, 2048, 4, 4096)]
    else:
        sizes = [_Size(12, 768, 16, 512), _Size(24, 2048, 8, 4096), _Size(32, 4096, 4, 4096, True)]
    for size in sizes:
        row = _try(size, settings, compiled=compiled)
        yield row
        if "OutOfMemory" in row.get("error", ""):
            yield _try(replace(size, samples=size.samples // 2), settings, compiled=compiled)


def _try(size: _Size, settings: argparse.Namespace, *, compiled: bool) -> Row:
    row: Row = {"what": f"{size} {'compiled' if compiled else 'by hand'}"}
    try:
        return row | _step(size, settings, compiled=compiled)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"[:400], "ok": False}
    finally:
        gc.collect()  # an engine refers to itself
        if settings.device == "cuda":
            torch.cuda.empty_cache()


def random_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: str,
    *,
    grad_cp: bool = False,
    impl: Impl = "auto",
) -> RWKV:
    """Return a model whose weights are drawn on the device, the same each time."""
    with torch.device("meta"):
        model = RWKV(config, grad_cp=grad_cp, impl=impl)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
    return model


def _step(size: _Size, settings: argparse.Namespace, *, compiled: bool) -> Row:
    from rwkvkit.model.flops import train_flops
    from rwkvkit.train.batch import Batch
    from rwkvkit.train.config import TrainConfig
    from rwkvkit.train.device import card_of
    from rwkvkit.train.engine import TorchEngine
    from rwkvkit.train.estimate import Setup, estimate_memory, estimate_speed

    on_gpu = settings.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    vocab = 99 if settings.tiny else 65536
    samples, ctx_len, grad_cp = size.samples, size.ctx_len, size.grad_cp
    config = ModelConfig(arch="x070", n_layer=size.n_layer, n_embd=size.n_embd, vocab_size=vocab)
    impl: Impl = "cuda" if on_gpu else "chunked"
    setup = Setup(config, samples, ctx_len, dtype, grad_cp, impl, fused=not compiled, on_gpu=on_gpu)
    memory = estimate_memory(setup)
    state = memory.weights + memory.masters + memory.moments + memory.gradients
    available = torch.cuda.mem_get_info()[0] if on_gpu else math.inf
    with_optimizer = state < 0.6 * available  # the rest is for activations
    wide = torch.float32 if with_optimizer else dtype
    model = random_model(config, wide, settings.device, grad_cp=grad_cp, impl=impl)
    if compiled:
        model.compile_blocks()
    else:
        model.fuse_elementwise()
    idx = torch.randint(vocab, (samples, ctx_len + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(idx[:, :-1].contiguous(), idx[:, 1:].contiguous())
    if with_optimizer:
        train = TrainConfig(micro_bsz=samples, lr_init=1e-4, lr_final=1e-4)
        engine = TorchEngine(model.train(), train, dtype)

        def run() -> object:
            return engine.step(batch, lr=1e-4, weight_decay=0.0)

    else:
        x, y = (t.to(settings.device) for t in (batch.x, batch.y))

        def run() -> object:
            model.zero_grad(set_to_none=True)
            model.loss(x, y).backward()
            return None

    row = timed(run, settings, ahead=False)
    if not row["ok"]:
        return row
    tokens_per_s = samples * ctx_len / row["ms"] * 1e3
    row |= {"tokens_per_s": tokens_per_s, "with_optimizer": with_optimizer}
    if with_optimizer:
        row["estimated_gb"] = memory.total / 1e9
    card = card_of(torch.cuda.get_device_name()) if on_gpu else None
    if card:
        row["mfu"] = train_flops(config) * tokens_per_s / (card.tflops * 1e12)
        row["estimated_tokens_per_s"] = estimate_speed(setup, card, compiled=compiled)
    try:
        row["breakdown_ms"] = _breakdown(run, on_gpu)
    except Exception as error:  # the step has its time all the same
        row["breakdown_ms"] = f"{type(error).__name__}: {error}"[:200]
    return row


def _breakdown(run: Callable[[], object], on_gpu: bool) -> dict[str, float]:
    """Milliseconds of a step by kind of kernel."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key.lower()
        kind = next((kind for kind, words in _CATEGORIES if re.search(words, name)), "elementwise")
        if event.is_user_annotation:  # it spans kernels that are counted by themselves
            continue
        if not on_gpu or event.device_type != DeviceType.CPU:
            found[kind] = found.get(kind, 0.0) + time_us / 1e3
    return {kind: round(ms, 3) for kind, ms in sorted(found.items(), key=lambda x: -x[1])}
