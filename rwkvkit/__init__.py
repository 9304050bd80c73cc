"""Prepare data for RWKV language models and train them.

The names below are the library. They are imported on first use, so ``import rwkvkit`` and the
data work never load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvkit.data.binidx import Binidx, open_binidx
    from rwkvkit.data.binidx_writer import BinidxWriter
    from rwkvkit.data.prime import magic_prime
    from rwkvkit.errors import RwkvkitError
    from rwkvkit.model.checkpoint import load_model
    from rwkvkit.model.generate import generate
    from rwkvkit.model.loss import lm_loss
    from rwkvkit.tokenizer.world import WorldTokenizer
    from rwkvkit.train.optimizer import optimizer_groups
    from rwkvkit.train.sampler import sample_offsets
    from rwkvkit.train.schedule import Schedule

__version__ = "0.1.0"

_HOMES = {
    "Binidx": "rwkvkit.data.binidx",
    "BinidxWriter": "rwkvkit.data.binidx_writer",
    "RwkvkitError": "rwkvkit.errors",
    "Schedule": "rwkvkit.train.schedule",
    "WorldTokenizer": "rwkvkit.tokenizer.world",
    "generate": "rwkvkit.model.generate",
    "lm_loss": "rwkvkit.model.loss",
    "load_model": "rwkvkit.model.checkpoint",
    "magic_prime": "rwkvkit.data.prime",
    "open_binidx": "rwkvkit.data.binidx",
    "optimizer_groups": "rwkvkit.train.optimizer",
    "sample_offsets": "rwkvkit.train.sampler",
}

__all__ = [
    "Binidx",
    "BinidxWriter",
    "RwkvkitError",
    "Schedule",
    "WorldTokenizer",
    "generate",
    "lm_loss",
    "load_model",
    "magic_prime",
    "open_binidx",
    "optimizer_groups",
    "sample_offsets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rwkvkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
