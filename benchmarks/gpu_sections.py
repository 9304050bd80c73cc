"""The sections of ``gpu_check.py``: each takes the settings and yields rows for its table."""

import argparse
from collections.abc import Callable, Iterator

from gpu_elementwise import elementwise_cases, elementwise_section
from gpu_graphs import recorded_steps
from gpu_head import head, loss_cases
from gpu_operators import (
    compile_kernels,
    correct_wkv6,
    correct_wkv7,
    operators,
    sanitizer,
    wkv_cases,
)
from gpu_steps import compiled_steps, steps
from gpu_timing import Row
from gpu_variants import variants


def small_cases(settings: argparse.Namespace) -> Iterator[Row]:
    """A few cases of every kernel: what the sanitizer watches."""
    yield from wkv_cases(settings)
    yield from loss_cases(settings)
    yield from elementwise_cases(settings)


SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Row]], float]] = {
    "compile": (compile_kernels, 40),
    "correctness wkv7": (correct_wkv7, 30),
    "correctness wkv6": (correct_wkv6, 40),
    "operators": (operators, 35),
    "variants": (variants, 25),
    "elementwise": (elementwise_section, 50),
    "head": (head, 25),
    "steps": (steps, 70),
    "recorded steps": (recorded_steps, 25),
    "compiled steps": (compiled_steps, 60),
    "sanitizer": (sanitizer, 75),
}
"""By name: the function, and the seconds it may take; together under eight minutes."""
