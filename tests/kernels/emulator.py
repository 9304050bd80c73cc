"""Run the kernels' own sources on a CPU: compiled by g++ against ``emulator/device.cuh``.

Every tensor is copied between guard bands that are NaN; a kernel that writes there, or that reads
from there what it uses, is found out.
"""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rwkvkit.ops.cuda.compile import Program, read_source
from rwkvkit.ops.cuda.launch import Argument
from rwkvkit.resources import bundled

HERE = Path(__file__).parent / "emulator"
_GUARD = 512  # bytes on either side of a tensor
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(')
_WAIT = re.compile(r"__syncthreads\(\)|__syncwarp\(\)|copy_async_wait<")


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("flush_denormals", ctypes.c_uint),
    )


class Emulator:
    """The kernels of one program, callable on the CPU.

    Attributes:
        seed: of the order in which warps run.
        flush_denormals: count denormal numbers as zero, as the compiled kernels do.
    """

    def __init__(self, program: Program, folder: Path, source: str | None = None) -> None:
        """Compile into ``folder``; ``source`` replaces what the program's file holds."""
        text = source or read_source(program.file, {"device.cuh": HERE / "device.cuh"})
        self.kernels = _KERNEL.findall(text)
        unit = folder / f"{Path(program.file).stem}.cpp"
        unit.write_text(text + _entry_points(self.kernels))
        library = unit.with_suffix(".so")
        self._build(unit, library, [f"-D{name}={value}" for name, value in program.defines])
        self._library = ctypes.CDLL(str(library))
        self.seed = 1
        self.flush_denormals = True

    def _build(self, unit: Path, library: Path, defines: list[str]) -> None:
        compile_with("-O2", "-shared", *defines, unit, "-o", library)

    @contextmanager
    def without(self, file: str, line: int) -> Iterator[None]:
        """Take the barrier in this line of the source out."""
        self.take_out(file, line)
        try:
            yield
        finally:
            self.take_out("", 0)

    def take_out(self, file: str, line: int) -> None:
        """Leave out the barrier in this line of the source, until called again."""
        self._library.take_out(file.encode(), line)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        *arguments: Argument,
    ) -> None:
        """Run a kernel to its end; see ``rwkvkit.ops.cuda.launch.launch``."""
        self._check(kernel, arguments)
        settings = _Launch(
            (ctypes.c_uint * 3)(*grid), threads, shared_bytes, self.seed, self.flush_denormals
        )
        guarded = [_Guarded(x) if isinstance(x, Tensor) else x for x in arguments]
        self._before([x for x in guarded if isinstance(x, _Guarded)])
        values = [_value(x) for x in guarded]
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
        )
        getattr(self._library, f"launch_{kernel}")(ctypes.byref(settings), pointers)
        for number, argument in enumerate(guarded):
            if isinstance(argument, _Guarded):
                argument.give_back(f"{kernel}, argument {number}")

    def _before(self, tensors: "list[_Guarded]") -> None:
        """Called before a launch, with its tensors."""

    def _check(self, kernel: str, arguments: tuple[Argument, ...]) -> None:
        """Compare the arguments with the kernel's parameters."""
        signature = getattr(self._library, f"signature_{kernel}")
        signature.restype = ctypes.c_char_p
        parameters = signature().decode().split()
        assert len(parameters) == len(arguments), (parameters, len(arguments))
        for number, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True)):
            if isinstance(argument, Tensor):
                fits = parameter == f"p{argument.element_size()}"
            elif argument is None:
                fits = parameter.startswith("p")
            else:
                fits = parameter == ("i" if isinstance(argument, int) else "f")
            assert fits, f"{kernel}, argument {number}: {argument} for {parameter}"


def compile_with(*arguments: str | Path) -> None:
    """Call the C++ compiler."""
    flags = f"-std=c++17 -fPIC -fno-strict-aliasing -U_FORTIFY_SOURCE -w -I{HERE}"
    if not with_clang():
        flags += " -fno-gnu-unique"  # libraries in one process must not share their state
    done = subprocess.run([_compiler(), *flags.split(), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@cache
def with_clang() -> bool:
    """Whether the C++ compiler is clang, also where it is called g++."""
    command = [_compiler(), "--version"]
    return "clang" in subprocess.run(command, capture_output=True, text=True).stdout


def _compiler() -> str:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "the kernels' tests need g++"
    return compiler


def waits(file: str) -> list[int]:
    """The lines of a kernel file in which threads wait for each other or for a copy.

    Without those that say that no result changes without them: the emulator's order hides it.
    """
    lines = (bundled("kernels") / file).read_text(encoding="utf-8").splitlines()
    return [
        number
        for number, line in enumerate(lines, 1)
        if _WAIT.search(line) and "only a race without it" not in line
    ]


class _Guarded:
    """A copy of a tensor between guard bands."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous()
        self.tensor = tensor
        self.bytes = tensor.numel() * tensor.element_size()
        self.buffer = torch.full((self.bytes + 2 * _GUARD + 128,), 0xFF, dtype=torch.uint8)
        self.start = _GUARD + -(self.buffer.data_ptr() + _GUARD) % 128
        self.inside().copy_(tensor.detach().reshape(-1).view(torch.uint8))

    def address(self) -> int:
        return self.buffer.data_ptr() + self.start

    def inside(self) -> Tensor:
        return self.buffer[self.start : self.start + self.bytes]

    def give_back(self, where: str) -> None:
        outside = torch.cat([self.buffer[: self.start], self.buffer[self.start + self.bytes :]])
        assert (outside == 0xFF).all(), f"{where}: written outside of the tensor"
        whole = self.tensor.detach().view(-1).view(torch.uint8)
        if not torch.equal(whole, self.inside()):  # autograd counts writes to inputs, too
            whole.copy_(self.inside())


def _value(argument: "_Guarded | int | float | None") -> ctypes._SimpleCData:
    if isinstance(argument, _Guarded):
        return ctypes.c_void_p(argument.address())
    if argument is None:
        return ctypes.c_void_p()
    return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)


def _entry_points(kernels: list[str]) -> str:
    """C functions that describe and start each kernel."""
    text = """
extern "C" void take_out(const char *file, int line) {
    emulator::skipped_file = file;
    emulator::skipped_line = line;
}
"""
    for name in kernels:
        text += f"""
extern "C" const char *signature_{name}() {{
    static const std::string text = emulator::signature({name});
    return text.c_str();
}}
extern "C" void launch_{name}(const emulator::Launch *settings, void **arguments) {{
    emulator::launch({name}, *settings, arguments);
}}
"""
    return text
