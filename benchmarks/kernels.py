"""What the WKV kernels ask of an sm_90, counted without one: lower bounds of their time.

    python benchmarks/kernels.py --out benchmarks/results/kernels.json

Accesses are counted in the emulator of the tests, from chunk to chunk: sectors of global memory and
passes through the banks of shared memory. No kernel can be faster than these allow. Instructions
are those of the loop over chunks in the machine code (nvdisasm is in pip's nvidia-cuda-nvdisasm),
somewhat more than are run: one warp of WKV7's four inverts a matrix, WKV6 stores a state every
fourth chunk. How much slower a kernel is (latency, few warps) only a GPU tells.

B batch, T tokens, H heads, N head size.
"""

import argparse
import math
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import torch

from rwkvkit.ops.cuda import wkv6_kernels, wkv7_kernels
from rwkvkit.ops.cuda.compile import compile_program

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kernels"))

import wkv6_cases
import wkv7_cases
from accesses import watching

ARCH, CHUNK = "sm_90a", 16
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?(\S.*?);")
_LABEL = re.compile(r"^(\.L_\w+):")


def main() -> None:
    """Count, print, and write the report."""
    arguments = _arguments()
    results = report.header("torch", "cuda-core") | {
        "card": {name: getattr(arguments, name) for name in ("sms", "ghz", "tb_per_s")},
        "shape": {"B": arguments.batch, "T": arguments.tokens, "H": arguments.heads, "N": 64},
        "arch": ARCH,
        "kernels": dict(_kernels(arguments)),
    }
    print(f"{'':14} regs  blocks  instr  passes  B/elem   issue  banks  memory ms")
    for name, row in results["kernels"].items():
        floor = row["floor_ms"]
        instructions = row["instructions"] or "-"
        print(
            f"{name:14} {row['registers']:4}  {row['blocks']:6}  {instructions:>5}  "
            f"{row['passes']:6.0f}  {row['bytes']:6.1f}  {floor['issue'] or math.nan:6.2f} "
            f"{floor['banks']:6.2f}  {floor['memory']:6.2f}"
        )
    report.save(results, arguments.out)


def _kernels(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The bf16 kernels without documents, by name."""
    seven, six = wkv7_kernels.Shape(64), wkv6_kernels.Shape(64)
    for name, shape, run in (("wkv7", seven, _run_wkv7), ("wkv6", six, _run_wkv6)):
        costs = _chunk_costs(run)
        programs = {
            f"{name}_forward": (shape.forward_program(), shape.forward_shared_bytes(), 1),
            f"{name}_backward": (
                shape.backward_program(),
                shape.backward_shared_bytes(),
                six.chunks if name == "wkv6" else 1,
            ),
        }
        for kernel, (program, shared_bytes, chunks) in programs.items():
            binary = compile_program(program, ARCH)
            registers = binary.resources[kernel].registers
            instructions = _instructions(binary.cubin, chunks)
            passes, sectors = costs[kernel]
            loops = math.ceil(arguments.batch * arguments.heads / arguments.sms)
            loops *= arguments.tokens // CHUNK
            elements = arguments.batch * arguments.tokens * arguments.heads * 64
            bytes_ = 32 * sectors / (CHUNK * 64)
            yield (
                kernel,
                {
                    "registers": registers,
                    "shared_bytes": shared_bytes,
                    "blocks": _blocks(registers, shared_bytes),
                    "instructions": instructions,
                    "passes": passes,
                    "bytes": bytes_,
                    "floor_ms": {
                        # four warps a block, four schedulers
                        "issue": instructions and loops * instructions / arguments.ghz / 1e6,
                        "banks": loops * passes / arguments.ghz / 1e6,
                        "memory": elements * bytes_ / arguments.tb_per_s / 1e9,
                    },
                },
            )


def _chunk_costs(run: Callable[[int], object]) -> dict[str, tuple[float, float]]:
    """Passes and sectors of a block for a chunk, by kernel: the difference of two lengths."""
    few, many = 4, 12  # whole segments of WKV6
    found = []
    for chunks in (few, many):
        with watching() as seen:
            run(chunks * CHUNK)
        assert not seen.faults()
        found.append(seen.costs())

    def grown(kernel: str, memory: str) -> float:
        before, after = (costs[kernel][memory][1] for costs in found)
        return (after - before) / (many - few)

    return {kernel: (grown(kernel, "shared"), grown(kernel, "global")) for kernel in found[0]}


def _run_wkv7(tokens: int) -> object:
    return wkv7_cases.run(wkv7_cases.make((1, tokens, 1, 64)))


def _run_wkv6(tokens: int) -> object:
    return wkv6_cases.run(wkv6_cases.make((1, tokens, 1, 64)))


def _blocks(registers: int, shared_bytes: int) -> int:
    """Blocks of 128 threads that an sm_90 holds at once."""
    return min(65536 // (128 * (-(-registers // 8) * 8)), 228 * 1024 // (shared_bytes + 1024), 16)


def _instructions(cubin: bytes, chunks: int) -> int | None:
    """Instructions of the loop over chunks, a warp; ``chunks``: those of its outermost round."""
    nvdisasm = shutil.which("nvdisasm") or next(
        map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm")), None
    )
    if nvdisasm is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [nvdisasm, "-c", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in done.stdout.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(code)
        elif instruction := _INSTRUCTION.match(line):
            code.append(instruction.group(1))
    jumps = ((i, re.search(r"BRA.*`\((\.L_\w+)\)", x)) for i, x in enumerate(code))
    back = [(labels[to.group(1)], i) for i, to in jumps if to]
    loops = sorted(((begin, end) for begin, end in back if begin < end), key=lambda x: x[0] - x[1])
    outer = loops[0]
    inner = [x for x in loops[1:] if outer[0] <= x[0] and x[1] <= outer[1]] if chunks > 1 else []
    length = sum(end - begin + 1 for begin, end in inner)
    return length + (outer[1] - outer[0] + 1 - length) // chunks


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors; an H200's")
    parser.add_argument("--ghz", type=float, default=1.755, help="their clock")
    parser.add_argument("--tb-per-s", type=float, default=4.3, help="of global memory")
    parser.add_argument("--out", type=Path, help="write the report to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
