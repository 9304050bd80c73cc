"""Every kernel compiles for every architecture, without spills, into what is recorded.

Record again, after a look at the difference: ``python tests/kernels/test_resources.py``.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from rwkvkit.ops.cuda.compile import Program, compile_program, toolkit_versions
from rwkvkit.ops.cuda.cross_entropy import programs as cross_entropy_programs
from rwkvkit.ops.cuda.elementwise_kernels import programs as elementwise_programs
from rwkvkit.ops.cuda.wkv6_kernels import programs as wkv6_programs
from rwkvkit.ops.cuda.wkv7_kernels import Shape
from rwkvkit.ops.cuda.wkv7_kernels import programs as wkv7_programs

RECORD = Path(__file__).parents[1] / "golden" / "kernels.json"
PROGRAMS: dict[str, Program] = {
    **wkv7_programs(),
    **wkv6_programs(),
    **cross_entropy_programs(),
    **elementwise_programs(),
}

# Any other from sm_80 on compiles just as well.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
# Shared memory that a block can have, in bytes, and the kernels that are not for all of them.
SHARED = dict(zip(ARCHITECTURES, (166912, 101376, 101376, 232448, 232448, 101376), strict=True))
SHARED["sm_75"] = 65536
LARGE = {
    f"wkv7 {kind} N=128 backward{documents}"
    for kind in ("bf16", "fp16")
    for documents in ("", ", documents")
}


def architectures(name: str) -> tuple[str, ...]:
    """Those that a program is for."""
    on_turing = "fp32" in name or ("fp16" in name and not name.startswith("wkv6"))
    too_large = name.startswith("wkv7") and "N=128" in name
    return ("sm_75", *ARCHITECTURES) if on_turing and not too_large else ARCHITECTURES


def measure(name: str) -> dict[str, dict[str, list[int]]]:
    """Registers a thread and spilled bytes, by kernel and architecture."""
    program = PROGRAMS[name]
    found: dict[str, dict[str, list[int]]] = {}
    for arch in architectures(name):
        for kernel, used in compile_program(program, arch).resources.items():
            found.setdefault(kernel, {})[arch] = [used.registers, used.spill_bytes]
    return found


def shared_bytes(program: Program) -> int:
    return dict(program.defines).get("SHARED_BYTES", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA publishes NVRTC for Linux and Windows")
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiles_into_what_is_recorded(name):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    program = PROGRAMS[name]
    found = measure(name)
    assert all(spilled == 0 for used in found.values() for _, spilled in used.values())
    assert record["programs"][name]["shared_bytes"] == shared_bytes(program)
    if record["nvrtc"] == toolkit_versions()[-1]:  # another compiler allots other registers
        assert record["programs"][name]["kernels"] == found


def test_shared_memory_fits():
    for name, program in PROGRAMS.items():
        for arch in architectures(name):
            available = SHARED[arch]
            fits = shared_bytes(program) <= available
            assert fits or (name in LARGE and available == 101376), (name, arch)


def test_the_documentation_says_what_is_recorded():
    record = json.loads(RECORD.read_text(encoding="utf-8"))["programs"]
    known = {}
    for name, found in record.items():
        usual = "bf16" in name and "N=128" not in name and "one" not in name
        if usual or "fp32 N=64" in name:
            for kernel, used in found["kernels"].items():
                what = kernel + (", documents" if name.endswith("documents") else "")
                alone = kernel.endswith("_forward") and not kernel.startswith("wkv")
                shared = 0 if alone else found["shared_bytes"]  # sums are of the backward pass
                numbers = [*(used[arch][0] for arch in ARCHITECTURES), shared]
                known[what] = " | ".join(f"{number:,}" for number in numbers)
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+(?:, documents)?) \| (\d.*) \|$", page, re.MULTILINE)
    assert {what: numbers for what, numbers in rows if what in known} == known


def test_nothing_is_recorded_that_does_not_exist():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["programs"].keys() == PROGRAMS.keys()
    assert Shape(64).backward_program() in PROGRAMS.values()


if __name__ == "__main__":
    programs = {
        name: {"shared_bytes": shared_bytes(program), "kernels": measure(name)}
        for name, program in PROGRAMS.items()
    }
    text = json.dumps({"nvrtc": toolkit_versions()[-1], "programs": programs}, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")
