"""The WKV6 and WKV5 kernels compile for every architecture, and no register is spilled."""

import json
import sys
from pathlib import Path

import pytest

from rwkvkit.ops.cuda import wkv6_kernels as kernels
from rwkvkit.ops.cuda.compile import (
    ARCHITECTURES,
    Program,
    compile_program,
    toolkit_versions,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="NVIDIA publishes NVRTC for Linux and Windows only"
)

RECORDED = json.loads(Path(__file__).with_suffix(".json").read_text())
PROGRAMS: dict[str, tuple[Program, int]] = {}
for size, resets in ((64, False), (64, True), (128, True)):
    shape = kernels.Shape(size, resets=resets)
    name = f"N {size}{', resets' if resets else ''}"
    PROGRAMS[f"forward, {name}"] = (shape.forward_program(), shape.forward_shared_bytes())
    PROGRAMS[f"backward, {name}"] = (shape.backward_program(), shape.backward_shared_bytes())
for size in (64, 128):
    shared_bytes = kernels.precise_shared_bytes(size)
    PROGRAMS[f"precise, N {size}"] = (kernels.precise_program(size), shared_bytes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_registers_and_shared_memory(name):
    program, shared_bytes = PROGRAMS[name]
    registers = {}
    for arch in ARCHITECTURES:
        for kernel, used in compile_program(program, arch).resources.items():
            assert used.spill_bytes == 0, (kernel, arch)
            assert used.stack_bytes == 0, (kernel, arch)
            assert used.shared_bytes == 0, (kernel, arch)
            registers.setdefault(kernel, {})[arch] = used.registers
    found = {"shared_bytes": shared_bytes, "registers": registers}
    if toolkit_versions()[-1] == RECORDED["nvrtc"]:  # another compiler, other registers
        assert found == RECORDED["programs"][name], json.dumps({name: found})


def test_shared_memory_is_what_every_architecture_has():
    assert all(shared_bytes <= 99 * 1024 for _, shared_bytes in PROGRAMS.values())
