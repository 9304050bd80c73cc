"""What kernels do with memory, seen in the emulator: faults, bank conflicts, sectors.

Every access of every thread is noted (``emulator/accesses.cpp``). Two race if no barrier orders
them by CUDA's rules, in whatever order they ran: exchanges among lanes order nothing.
"""

import atexit
import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from emulator import HERE, Emulator, _Guarded, compile_with

from rwkvkit.ops.cuda import launch
from rwkvkit.ops.cuda.compile import Program
from rwkvkit.resources import bundled


@dataclass(frozen=True)
class Access:
    """The accesses of one place of the source, called from one place.

    Attributes:
        memory: ``shared`` or ``global``.
        writes: they write.
        requests: how often a warp comes to it.
        passes: through the banks of shared memory, or sectors of global memory, for all requests.
        least: the passes or sectors that the bytes need.
        where: the place and its callers in the kernels' sources, innermost first, as file:line.
    """

    memory: str
    writes: bool
    requests: int
    passes: int
    least: int
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'write' if self.writes else 'read'} at {' < '.join(self.where)}"


class Watched(Emulator):
    """An emulator that notes what its last launch did."""

    def _build(self, unit: Path, library: Path, defines: list[str]) -> None:
        noted = unit.with_suffix(".o")
        flags = ("-g", "-O0", "-fno-omit-frame-pointer", "-DWATCHED", *defines)
        compile_with("-c", *flags, "-fsanitize=thread", unit, "-o", noted)
        watcher = HERE / "accesses.cpp"
        compile_with("-shared", "-O2", "-fno-omit-frame-pointer", watcher, noted, "-o", library)
        self._path = library

    def _before(self, tensors: list[_Guarded]) -> None:
        count = len(tensors)
        begins = (ctypes.c_size_t * count)(*(x.address() for x in tensors))
        ends = (ctypes.c_size_t * count)(*(x.address() + x.bytes for x in tensors))
        self._library.watch(count, begins, ends)

    def report(self) -> tuple[list[str], list[Access]]:
        """Return the last launch's faults, and all its accesses to shared and global memory."""
        path = self._path.with_suffix(".txt")
        self._library.report(str(path).encode())
        lines = [line.split() for line in path.read_text().splitlines()]
        places = self._places(sorted({at for line in lines for at in line[5:]}))
        found = [
            Access(
                memory,
                what == "write",
                *(int(x) for x in counts),
                tuple(place for at in frames for place in places[at]),
            )
            for memory, what, *counts, frames in ((*line[:5], line[5:]) for line in lines)
        ]
        racing = [x for x in found if x.memory == "race"]
        faults = [f"race: {x}, {y}" for x, y in zip(racing[::2], racing[1::2], strict=True)]
        faults += [f"{x.memory}: {x}" for x in found if x.memory in ("outside", "misaligned")]
        assert "unseen" not in path.read_text(), "a write that was not noted"
        return faults, [x for x in found if x.memory in ("shared", "global")]

    def _places(self, addresses: list[str]) -> dict[str, list[str]]:
        """Name the lines of the kernels' sources at addresses of the library, innermost first."""
        command = ["addr2line", "-a", "-i", "-s", "-e", str(self._path)]
        done = subprocess.run(
            command, input="\n".join(addresses), capture_output=True, text=True, check=True
        )
        places: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            if line.startswith("0x"):
                places[f"{int(line, 16):x}"] = found = []
            elif re.match(r"(?!device\.cuh)[\w.]+\.cuh?:", line):
                found.append(line.split(" ")[0])
        return places


@dataclass
class Seen:
    """What launches did.

    Attributes:
        launches: the kernel, its faults and its accesses.
        without: file and line of a barrier that is taken out.
        more: macros in addition to a program's.
    """

    launches: list[tuple[str, list[str], list[Access]]] = field(default_factory=list)
    without: tuple[str, int] = ("", 0)
    more: tuple[tuple[str, int], ...] = ()

    def launch(self, program: Program, kernel: str, *rest: Any, alignment: int = 16) -> None:
        """Launch in the emulator."""
        emulator = _watched(replace(program, defines=program.defines + self.more))
        emulator.take_out(*self.without)
        emulator.launch(kernel, *rest)
        self.launches.append((kernel, *emulator.report()))

    def faults(self) -> list[str]:
        """Those of all launches."""
        return [fault for _, faults, _ in self.launches for fault in faults]

    def costs(self) -> dict[str, dict[str, list[int]]]:
        """By kernel: requests, passes or sectors, and the least that there could be."""
        return {
            kernel: {
                memory: [
                    sum(getattr(x, count) for x in accesses if x.memory == memory)
                    for count in ("requests", "passes", "least")
                ]
                for memory in ("shared", "global")
            }
            for kernel, _, accesses in self.launches
        }


@contextmanager
def watching() -> Iterator[Seen]:
    """Launches go to watched emulators."""
    seen = Seen()
    with mock.patch.object(launch, "launch", seen.launch):
        yield seen


@cache
def _watched(program: Program) -> Watched:
    """Compile a program, once."""
    folder = tempfile.mkdtemp(prefix="rwkvkit-watched-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Watched(program, Path(folder))


def barriers(file: str) -> list[int]:
    """The lines of a kernel file in which threads wait for each other."""
    lines = (bundled("kernels") / file).read_text(encoding="utf-8").splitlines()
    return [n for n, line in enumerate(lines, 1) if re.search(r"__sync(threads|warp)\(\)", line)]
