"""Every kernel's accesses to memory: no faults, and as few bank conflicts and sectors as recorded.

Record again, after a look at the difference: ``python tests/kernels/test_accesses.py``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import elementwise_cases
import pytest
import torch
import wkv6_cases
import wkv7_cases
from accesses import barriers, watching
from emulator import with_clang
from torch import Tensor

from rwkvkit.ops import fused
from rwkvkit.ops.cuda import cross_entropy
from rwkvkit.resources import bundled

pytestmark = pytest.mark.skipif(with_clang(), reason="clang reports accesses in another way")

RECORD = Path(__file__).parents[1] / "golden" / "accesses.json"
STARTS = [3, 20, 21, 32, 47]
TOKENS = 48


def wkv7(
    size: int = 64, dtype: torch.dtype = torch.bfloat16, starts: list[int] | None = None, **shape
) -> Callable[[], object]:
    case = wkv7_cases.make(
        (1, TOKENS, 1, size),
        dtype=dtype,
        state=True,
        dfinal=True,
        origin=bool(starts),
        starts=starts,
    )
    if dtype == torch.float32:
        return lambda: wkv7_cases.run_precise(case)
    return lambda: wkv7_cases.run(case, **shape)


def wkv6(
    size: int = 64, dtype: torch.dtype = torch.bfloat16, starts: list[int] | None = None, **options
) -> Callable[[], object]:
    shape = {name: options.pop(name) for name in ("split", "spacing") if name in options}
    case = wkv6_cases.make(
        (1, TOKENS, 1, size), dtype=dtype, state=True, dfinal=True, starts=starts, **options
    )
    return lambda: wkv6_cases.run(case, **shape)


def elementwise(name: str, size: int) -> Callable[[], object]:
    case = elementwise_cases.make(name, (1, 300, 2, size))

    def run() -> object:
        with mock.patch.object(Tensor, "is_cuda", True):
            return elementwise_cases.run(fused, case)

    return run


def judge() -> object:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4099, generator=generator).bfloat16()
    targets = torch.randint(4099, (3,), generator=generator)
    with mock.patch.object(Tensor, "is_cuda", True):
        return cross_entropy.judge(logits, targets, torch.ones(3), 1e-2, True)


WORK: dict[str, Callable[[], object]] = {
    "wkv7": wkv7(),
    "wkv7, documents": wkv7(starts=STARTS),
    "wkv7 fp16": wkv7(dtype=torch.float16, buffers=1),
    "wkv7 fp16, documents": wkv7(dtype=torch.float16, starts=STARTS, buffers=1),
    "wkv7, one buffer": wkv7(buffers=1),
    "wkv7, checkpoint of 4": wkv7(checkpoint_chunks=4),
    "wkv7 N=128, documents": wkv7(128, starts=STARTS, buffers=1),
    "wkv7 fp32": wkv7(dtype=torch.float32, starts=STARTS),
    "wkv7 fp32 N=128": wkv7(128, dtype=torch.float32, starts=STARTS),
    "wkv6": wkv6(),
    "wkv6, documents": wkv6(starts=STARTS),
    "wkv6 fp16": wkv6(dtype=torch.float16),
    "wkv5": wkv6(op="wkv5"),
    "wkv6, split": wkv6(split=True, spacing=2),
    "wkv6 N=128, documents": wkv6(128, starts=STARTS),
    "wkv6 fp32": wkv6(dtype=torch.float32, starts=STARTS),
    "wkv6 fp32 N=128": wkv6(128, dtype=torch.float32, starts=STARTS),
    "cross entropy": judge,
    **{
        f"{name} N={size}": elementwise(name, size)
        for name in elementwise_cases.CASES
        for size in (64, 128)
    },
}


@pytest.mark.parametrize("name", WORK)
def test_no_faults_and_no_more_cost_than_recorded(name):
    """Compared are shares: how many accesses a source makes, a compiler may count otherwise."""
    with watching() as seen:
        WORK[name]()
    assert seen.launches
    assert seen.faults() == []
    record = json.loads(RECORD.read_text(encoding="utf-8"))[name]
    costs = seen.costs()
    assert costs.keys() == record.keys()
    for kernel, found in costs.items():
        for memory, (_, passes, least) in found.items():
            _, recorded, at_least = record[kernel][memory]
            assert passes * at_least <= 1.005 * recorded * least, (kernel, memory)


@pytest.mark.parametrize("name", ["wkv7 fp16", "wkv7 fp16, documents"])
def test_copies_at_once_need_no_more_barriers(name):
    """An sm_75 copies with plain stores."""
    with watching() as seen:
        want = WORK[name]()
        seen.more = (("COPIES_AT_ONCE", 1),)
        found = WORK[name]()
    assert len(seen.launches) == 4
    assert seen.faults() == []
    assert all(torch.equal(found[key], x) for key, x in want.items())


WITH_BARRIERS = {
    "wkv7_chunk.cuh": ["wkv7"],
    "wkv7_forward.cu": ["wkv7"],
    "wkv7_backward.cu": ["wkv7, documents", "wkv7, checkpoint of 4"],
    "wkv7_precise.cu": ["wkv7 fp32"],
    "wkv6_forward.cu": ["wkv6"],
    "wkv6_backward.cu": ["wkv6", "wkv6, split"],
    "wkv6_precise.cu": ["wkv6 fp32"],
    "cross_entropy.cu": ["cross entropy"],
    "shift_mix.cu": ["six mixes N=64"],
    "key_preparation.cu": ["keys N=64"],
    "residual_value.cu": ["values N=64"],
    "norm_gate.cu": ["norm and gate N=64"],
}


def test_all_files_with_barriers_are_known():
    files = [path.name for path in bundled("kernels").glob("*.cu*")]
    assert {file for file in files if barriers(file)} == WITH_BARRIERS.keys()


@pytest.mark.parametrize("file", WITH_BARRIERS)
def test_a_barrier_taken_out_is_a_race(file):
    def races(line: int, name: str) -> bool:
        with watching() as seen:
            seen.without = file, line
            WORK[name]()
        return any(fault.startswith("race") for fault in seen.faults())

    hidden = [x for x in barriers(file) if not any(races(x, name) for name in WITH_BARRIERS[file])]
    assert hidden == []


if __name__ == "__main__":
    record = {}
    for name, run in WORK.items():
        with watching() as seen:
            run()
        record[name] = seen.costs()
        assert seen.faults() == []
    lines = (f" {json.dumps(name)}: {json.dumps(found)}" for name, found in record.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
