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
    wkv_cases,
)
from gpu_sanitizer import planted_race, planted_write, sanitizer
from gpu_steps import compiled_steps, steps
from gpu_timing import Row
from gpu_variants import variants


def correct_others(settings: argparse.Namespace) -> Iterator[Row]:
    """Compare the cross entropy and the elementwise operators with float64."""
    yield from loss_cases(settings)
    yield from elementwise_cases(settings)


def small_cases(settings: argparse.Namespace) -> Iterator[Row]:
    """A few cases of every kernel: what the sanitizer watches."""
    yield from wkv_cases(settings)
    yield from correct_others(settings)


SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Row]], float]] = {
    "compile": (compile_kernels, 60),
    "correctness wkv7": (correct_wkv7, 80),
    "correctness wkv6": (correct_wkv6, 100),
    "correctness others": (correct_others, 30),
    "operators": (operators, 50),
    "steps": (steps, 110),
    "sanitizer": (sanitizer, 120),
    "head": (head, 30),
    "recorded steps": (recorded_steps, 40),
    "variants": (variants, 40),
    "elementwise": (elementwise_section, 80),
    "compiled steps": (compiled_steps, 110),
}
"""By name: the function, and the seconds that it may take at most.

Those that matter most come first: together they may take longer than the check has.
"""
WATCHED = {
    "small cases": small_cases,
    "planted write": planted_write,
    "planted race": planted_race,
}
"""What the sanitizer starts."""
