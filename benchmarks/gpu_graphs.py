"""Section of ``gpu_check.py``: steps of a small model, their passes recorded as CUDA graphs."""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from gpu_steps import random_model
from gpu_timing import Row, timed
from torch import Tensor

from rwkvkit.model.config import ModelConfig
from rwkvkit.train.batch import Batch
from rwkvkit.train.config import TrainConfig
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.recorder import record_passes

_STEPS = 10
_LIMIT = 1e-3  # relative, between losses: sums on a GPU need not be in one order


def recorded_steps(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare losses and speed with and without recordings, for two sizes of a pass."""
    for samples in (2,) if settings.tiny else (2, 16):
        losses: dict[bool, Tensor] = {}
        times: dict[bool, float] = {}
        for recorded in (False, True):
            engine, batches = _prepare(samples, recorded, settings)
            losses[recorded] = torch.tensor(
                [engine.step(batch, lr=1e-3, weight_decay=0.0).loss for batch in batches]
            )
            row: Row = {"what": f"b{samples} {'recorded' if recorded else 'as it is'}"}
            run = partial(engine.step, batches[0], lr=1e-3, weight_decay=0.0)
            row |= timed(run, settings, ahead=False)
            times[recorded] = row.get("ms", float("nan"))
            yield row
        apart = float(((losses[True] - losses[False]) / losses[False]).abs().max())
        yield {
            "what": f"b{samples} losses of {_STEPS} steps",
            "apart": apart,
            "speed_up": times[False] / times[True],
            "ok": apart < _LIMIT,
        }


def _prepare(
    samples: int, recorded: bool, settings: argparse.Namespace
) -> tuple[TorchEngine, list[Batch]]:
    """An engine, and batches with a mask and documents, as fine-tuning has them."""
    on_gpu = settings.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    vocab, length = (99, 32) if settings.tiny else (65536, 512)
    n_layer, n_embd = (2, 64) if settings.tiny else (12, 768)
    config = ModelConfig(arch="x070", n_layer=n_layer, n_embd=n_embd, vocab_size=vocab)
    model = random_model(config, torch.float32, settings.device)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(_STEPS):
        idx = torch.randint(vocab, (samples, length + 1), generator=generator)
        mask, resets = (torch.rand(samples, length, generator=generator) < p for p in (0.9, 0.01))
        batches.append(Batch(idx[:, :-1], idx[:, 1:], mask.byte(), resets))
    train = TrainConfig(micro_bsz=samples, lr_init=1e-3, lr_final=1e-3)
    recording = partial(record_passes, torch.device(settings.device), print, demanded=True)
    return TorchEngine(
        model.train(), train, dtype, recording=recording if recorded and on_gpu else None
    ), batches
