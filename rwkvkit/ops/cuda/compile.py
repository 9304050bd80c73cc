"""Compile the kernels of the folder ``kernels`` with NVRTC: no nvcc, no host compiler, no driver.

NVRTC is reached through NVIDIA's package ``cuda-core``. What was compiled is kept on disk, by a
hash of all that decides it.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from rwkvkit import files
from rwkvkit.errors import SetupError
from rwkvkit.resources import bundled

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
_POLICY = "fewer blocks rather than spills"  # counts among what decides a binary
_OPTIONS = {"std": "c++17", "use_fast_math": True, "ptxas_options": ["-v"]}


@dataclass(frozen=True)
class Program:
    """A kernel file, and the macros that shape it.

    Attributes:
        file: its name in the folder ``kernels``.
        defines: macros and their values. ``MIN_BLOCKS``, where it is one, is how many blocks a
            multiprocessor should hold; fewer are taken where a kernel would spill registers.
    """

    file: str
    defines: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Resources:
    """What the assembler gave a kernel.

    Attributes:
        registers: a thread.
        spill_bytes: stored to and loaded from local memory for want of registers, a thread.
        stack_bytes: local memory a thread.
        shared_bytes: static shared memory a block; the dynamic part is the launch's.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Binary:
    """A compiled program.

    Attributes:
        cubin: machine code.
        resources: by kernel.
    """

    cubin: bytes
    resources: dict[str, Resources]


def read_source(file: str, replacements: Mapping[str, Path] | None = None) -> str:
    """Return a kernel file with its includes put in place, each once.

    Args:
        file: its name in the folder ``kernels``.
        replacements: other files to take in place of some of these.
    """
    done: set[str] = set()

    def expand(name: str) -> str:
        if name in done:
            return ""
        done.add(name)
        path = (replacements or {}).get(name, bundled("kernels") / name)
        text = path.read_text(encoding="utf-8")
        parts, line, position = [f'#line 1 "{name}"\n'], 1, 0
        for include in _INCLUDE.finditer(text):
            parts.append(text[position : include.start()])
            line += text.count("\n", position, include.start())
            position = include.end()
            other = include.group(1)
            known = other in (replacements or {}) or (bundled("kernels") / other).is_file()
            if not known:
                parts.append(include.group(0))
                continue
            parts.append(f'{expand(other)}\n#line {line + 1} "{name}"')
        return "".join([*parts, text[position:]])

    return expand(file)


def compile_program(program: Program, arch: str) -> Binary:
    """Compile for an architecture such as ``sm_90a``, or take what was compiled before.

    Raises:
        SetupError: ``cuda-core`` and its NVRTC are missing or do not fit torch, or NVRTC does not
            know the architecture.
    """
    source = read_source(program.file)
    versions = toolkit_versions()
    described = [source, program.defines, arch, sorted(_OPTIONS.items()), versions, _POLICY]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    folder = files.cache_folder()
    path = folder and folder / "kernels" / f"{Path(program.file).stem}-{arch}-{key[:32]}.bin"
    binary = _read(path) if path else None
    if binary is None:
        binary = _compile_without_spills(source, program, arch)
        if path:
            _write(path, binary)
    return binary


@cache
def toolkit_versions() -> tuple[str, str, str]:
    """Return the versions of cuda-core, cuda-bindings and NVRTC, once known to fit torch.

    Raises:
        SetupError: they are missing, or are of another CUDA major version than torch.
    """
    wanted = torch.version.cuda
    extra = f"cu{wanted.split('.')[0]}" if wanted else "cu13"
    hint = f"pip install 'rwkvkit[{extra}]', or set train.wkv to chunked"
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
        core = metadata.version("cuda-core")
        bindings = metadata.version("cuda-bindings")
        import cuda.core  # noqa: F401
    except (AttributeError, ImportError, RuntimeError, metadata.PackageNotFoundError) as error:
        raise SetupError(
            f"the CUDA kernels need NVIDIA's packages cuda-core and NVRTC: {error}",
            where="wkv",
            hint=hint,
        ) from error
    if int(status) != 0:
        raise SetupError(f"NVRTC does not start: {status}", where="wkv", hint=hint)
    if core.startswith("0."):
        raise SetupError(f"cuda-core is {core}, too old: 1.0 is needed", where="wkv", hint=hint)
    if wanted and bindings.split(".")[0] != wanted.split(".")[0]:
        raise SetupError(
            f"torch is built for CUDA {wanted}, but cuda-bindings is {bindings}",
            where="wkv",
            hint=hint,
        )
    return core, bindings, f"{major}.{minor}"


def _compile_without_spills(source: str, program: Program, arch: str) -> Binary:
    """Compile for fewer blocks a multiprocessor as long as registers are spilled.

    How many registers a kernel takes differs from compiler to compiler.
    """
    binary = _compile(source, program, arch)
    blocks = dict(program.defines).get("MIN_BLOCKS", 1)
    while blocks > 1 and any(used.spill_bytes for used in binary.resources.values()):
        blocks -= 1
        defines = dict(program.defines) | {"MIN_BLOCKS": blocks}
        binary = _compile(source, Program(program.file, tuple(defines.items())), arch)
    return binary


def _compile(source: str, program: Program, arch: str) -> Binary:
    from cuda.core import Program as NvrtcProgram
    from cuda.core import ProgramOptions

    log = io.StringIO()
    defines = [(name, str(value)) for name, value in program.defines]
    try:
        options = ProgramOptions(
            name=program.file, arch=arch, define_macro=defines or None, **_OPTIONS
        )
        compiled = NvrtcProgram(source, "c++", options).compile("cubin", logs=log)
    except Exception as error:  # cuda-core names its errors differently from version to version
        raise SetupError(
            f"NVRTC did not compile it for {arch}: {error}\n{log.getvalue()}".rstrip(),
            where=program.file,
            hint="a newer NVRTC may know this GPU; train.wkv chunked does without kernels",
        ) from error
    return Binary(bytes(compiled.code), parse_resources(log.getvalue()))


def parse_resources(log: str) -> dict[str, Resources]:
    """Read what ``ptxas -v`` reports about each kernel."""
    resources = {}
    for part in log.split("Compiling entry function '")[1:]:

        def number(pattern: str, part: str = part) -> int:
            found = re.search(pattern, part)
            return int(found.group(1)) if found else 0

        resources[part.partition("'")[0]] = Resources(
            registers=number(r"Used (\d+) registers"),
            spill_bytes=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            stack_bytes=number(r"(\d+) bytes stack frame"),
            shared_bytes=number(r"(\d+) bytes smem"),
        )
    return resources


def _write(path: Path, binary: Binary) -> None:
    """Keep a binary: a line of JSON, then the machine code. Where none can be kept, go without."""
    head = {
        "sha256": hashlib.sha256(binary.cubin).hexdigest(),
        "resources": {name: asdict(used) for name, used in binary.resources.items()},
    }
    with contextlib.suppress(OSError), files.replacing(path) as temporary:
        temporary.write_bytes(json.dumps(head).encode() + b"\n" + binary.cubin)


def _read(path: Path) -> Binary | None:
    """Return what is kept, or None where nothing usable is."""
    try:
        head, _, cubin = path.read_bytes().partition(b"\n")
        known = json.loads(head)
        if known["sha256"] != hashlib.sha256(cubin).hexdigest():
            return None
        used = {name: Resources(**values) for name, values in known["resources"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Binary(cubin, used)
