"""Section of ``gpu_check.py``: the head with its loss, and the kernel that judges logits.

M tokens, V vocabulary.
"""

import argparse
from collections.abc import Iterator

import torch
from gpu_operators import error_of
from gpu_timing import Row, timed
from torch import Tensor

from rwkvkit.model.loss import L2WRAP, head_loss, lm_loss
from rwkvkit.ops import cross_entropy as plain
from rwkvkit.ops.cuda import cross_entropy as kernel

_BYTES = 6  # a logit: read twice, written once


def loss_cases(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare the kernel with float64: rows that begin anywhere, vocabularies of any size."""
    on_gpu = settings.device == "cuda"
    for dtype in (torch.bfloat16, torch.float16) if on_gpu else (torch.float32,):
        worst, at, same = 0.0, 0, True
        for vocab in (1, 7, 256, 1003, 65537):
            given = _judged(33, vocab, dtype, settings)
            first, second = ((x := given[0].clone(), kernel.judge(x, *given[1:])) for _ in "12")
            if settings.launch_only:
                continue
            want = given[0].double()
            wanted = plain.judge(want, given[1], given[2].double(), *given[3:])
            same &= all(map(torch.equal, first, second))
            error = max(error_of(first[0], want), error_of(first[1], wanted))
            if not error <= worst:
                worst, at = error, vocab
        yield {
            "what": f"cross entropy {str(dtype).removeprefix('torch.')}",
            "error": worst,
            "worst_at": f"V {at}",
            "repeatable": same,
            "ok": worst < 5e-3 and same,
        }


def _judged(
    tokens: int, vocab: int, dtype: torch.dtype, settings: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor, float, bool]:
    """Logits, targets, weights, and what else ``judge`` takes."""
    generator = torch.Generator(settings.device).manual_seed(vocab)
    at = {"device": settings.device, "generator": generator}
    logits = (4 * torch.randn(tokens, vocab, **at)).to(dtype)
    targets = torch.randint(vocab, (tokens,), **at)
    return logits, targets, 0.1 + torch.rand(tokens, **at), L2WRAP, True


def head(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare and time the loss: the kernel and plain PyTorch, in chunks and with whole logits."""
    tokens, width, vocab = (40, 16, 99) if settings.tiny else (32768, 2048, 65536)
    on_gpu = settings.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    chunk = min(tokens, 4096)
    for name, judge in (("kernel", kernel.judge), ("plain", plain.judge)):
        given = _judged(chunk, vocab, dtype, settings)
        row = {"what": f"judge [{chunk}, {vocab}] {name}"}
        row |= timed(lambda judge=judge, given=given: judge(*given), settings)
        if name == "kernel" and row["ok"]:
            row["gb_per_s"] = _BYTES * chunk * vocab / row["ms"] / 1e6
        yield row

    generator = torch.Generator(settings.device).manual_seed(0)
    at = {"device": settings.device, "generator": generator}

    hidden, weight = (torch.randn(of, width, **at).to(dtype) for of in (tokens, vocab))
    hidden.requires_grad_()
    weight.mul_(0.02).requires_grad_()
    targets = torch.randint(vocab, (tokens,), **at)

    def chunked(count: int, impl: str) -> list[Tensor]:
        loss = head_loss(hidden[:count], weight, targets[:count], impl=impl)
        return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]

    def whole(count: int) -> list[Tensor]:
        loss = lm_loss(hidden[:count] @ weight.mT, targets[:count])
        return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]

    few = min(tokens, 2048)
    for name, impl in (("kernel", "auto"), ("plain", "chunked")):
        error = max(map(error_of, chunked(few, impl), whole(few)))
        yield {"what": f"head {name} against whole", "error": error, "ok": error < 2e-2}
        yield {"what": f"head {name}", **timed(lambda impl=impl: chunked(tokens, impl), settings)}
    yield {"what": "head, logits whole", **timed(lambda: whole(tokens), settings)}
