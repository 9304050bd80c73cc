"""The sections of ``gpu_check.py``: each takes the settings and yields rows for its table."""

import argparse
from collections.abc import Callable, Iterator

from gpu_operators import compile_kernels, correctness, operators, sanitizer
from gpu_steps import compiled_steps, head, steps
from gpu_timing import Row

SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Row]], float]] = {
    "compile": (compile_kernels, 45),
    "correctness": (correctness, 70),
    "operators": (operators, 60),
    "head": (head, 25),
    "steps": (steps, 90),
    "compiled steps": (compiled_steps, 110),
    "sanitizer": (sanitizer, 70),
}
"""By name: the function, and the seconds it may take; together under eight minutes."""
