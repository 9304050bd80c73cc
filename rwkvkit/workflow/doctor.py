"""Check what this machine has of what rwkvkit needs, one thing at a time.

Nothing here may fail but by its finding: imports that can break stand inside the checks.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rwkvkit import files
from rwkvkit.errors import RwkvkitError
from rwkvkit.resources import cores

Status = Literal["ok", "note", "broken"]

_PYTHON, _TORCH = (3, 10), (2, 11)
_GIB = 1 << 30
_LITTLE_MEMORY, _LITTLE_DISK, _NO_DISK = 2 * _GIB, 5 * _GIB, _GIB // 4
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: of what was checked.
        status: ``broken`` is something that is needed here; a ``note`` costs speed or nothing.
        text: what was found.
        remedy: what to do, or None.
    """

    name: str
    status: Status
    text: str
    remedy: str | None = None


def examine(arch: str | None = None) -> Iterator[Finding]:
    """Run every check.

    Args:
        arch: compile the kernels for this architecture (``sm_90a``) instead of the present GPU's.

    Yields:
        The findings, each as soon as it is known.
    """
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("python", _python),
        ("torch", _torch),
        ("device", _device),
        ("kernels", lambda: _kernels(arch)),
        ("torch.compile", _compiler),
        ("tokenizer", _tokenizer),
        ("numba", _numba),
        ("cache folder", _cache_folder),
        ("memory", _memory),
        ("disk", _disk),
    )
    for name, check in checks:
        try:
            yield check()
        except RwkvkitError as error:
            where = f"{error.where}: " if error.where else ""
            yield Finding(name, "broken", f"{where}{error.what}", error.hint)
        except ModuleNotFoundError as error:
            text = f"the package {error.name} is not installed"
            yield Finding(name, "broken", text, f"pip install {error.name}")
        except Exception as error:  # whatever a broken package does when it is imported
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Finding(name, "broken", reason, "pip install --force-reinstall rwkvkit")


def _python() -> Finding:
    text = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    if sys.version_info < _PYTHON:
        return Finding("python", "broken", text, "install Python 3.10 or newer")
    return Finding("python", "ok", text)


def _torch() -> Finding:
    remedy = "pip install torch, as https://pytorch.org says for this machine"
    try:
        import torch
    except Exception as error:  # ImportError, but also OSError for a missing library
        return Finding("torch", "broken", f"does not load: {error}", remedy)
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    else:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    text = f"{torch.__version__}, {build}"
    if version < _TORCH:
        return Finding("torch", "broken", f"{text}: too old", remedy)
    return Finding("torch", "ok", text)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return _gpu(torch)
    driver = _NVIDIA.read_text().splitlines()[0] if _NVIDIA.is_file() else None
    if driver and not torch.version.cuda:
        return Finding(
            "device",
            "broken",
            f"there is an NVIDIA driver ({driver}), but torch is no CUDA build",
            "install the CUDA build of torch",
        )
    if driver:
        return Finding(
            "device",
            "broken",
            f"torch, built for CUDA {torch.version.cuda}, cannot use the GPU; {driver}",
            "update the driver, or install a torch for the CUDA version that nvidia-smi shows",
        )
    if torch.backends.mps.is_available():
        return Finding("device", "note", "an Apple GPU, which rwkvkit does not use: the CPU trains")
    return Finding("device", "note", "no GPU: the CPU trains, with the portable operators")


def _gpu(torch: Any) -> Finding:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory / _GIB
    text = f"{len(names)} x {names[0]}, compute capability {major}.{minor}, {memory:.0f} GiB"
    if torch.version.hip:
        return Finding("device", "note", f"{text}: under ROCm the portable operators run")
    if (major, minor) < (7, 5):
        return Finding("device", "note", f"{text}: older than 7.5, the portable operators run")
    if (major, minor) < (8, 0):
        return Finding("device", "note", f"{text}: older than 8.0, kernels run in fp16 and fp32")
    return Finding("device", "ok", text)


def _kernels(arch: str | None) -> Finding:
    """Compile the kernels: for ``arch``, else for the GPU if there is one that runs them."""
    from rwkvkit.ops.cuda.compile import toolkit_versions

    present = _present_architecture()
    wanted = arch or present
    try:
        core, bindings, nvrtc = toolkit_versions()
    except RwkvkitError as error:
        if wanted:
            raise
        text = "not installed, and no GPU here needs them"
        return Finding("kernels", "note", text, error.hint)
    text = f"cuda-core {core}, cuda-bindings {bindings}, NVRTC {nvrtc}"
    if not wanted:
        advice = "rwkvkit doctor --arch sm_90a compiles them for a GPU that is elsewhere"
        return Finding("kernels", "note", f"{text}; no GPU here to compile for", advice)
    return Finding("kernels", "ok", f"{text}; {_compile_all(wanted)}")


def _present_architecture() -> str | None:
    import torch

    from rwkvkit.ops.cuda.launch import architecture

    if not torch.cuda.is_available() or torch.version.hip:
        return None
    return architecture(0) if torch.cuda.get_device_capability() >= (7, 5) else None


def _compile_all(arch: str) -> str:
    from rwkvkit.ops.cuda.compile import compile_program
    from rwkvkit.ops.cuda.programs import programs

    kernels = 0
    for program in programs(arch):
        resources = compile_program(program, arch).resources
        kernels += len(resources)
        if spilling := [name for name, used in resources.items() if used.spill_bytes]:
            return f"{', '.join(spilling)} spill registers on {arch} and will be slow"
    return f"{kernels} kernels compile for {arch}"


def _compiler() -> Finding:
    import torch

    from rwkvkit.train.compile import missing

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := missing(device):
        remedy = "install it if train.compile is wanted"
        return Finding("torch.compile", "note", f"would not work: {reason}", remedy)
    return Finding("torch.compile", "ok", f"has what it needs on {device.type}")


def _tokenizer() -> Finding:
    from rwkvkit.tokenizer.world import WorldTokenizer

    tokenizer = WorldTokenizer()
    text = "The Wörld 世界\n"
    tokens = tokenizer.encode(text)
    if tokenizer.decode(tokens) != text:
        return Finding(
            "tokenizer",
            "broken",
            "the World vocabulary does not give back what it encodes",
            "pip install --force-reinstall rwkv",
        )
    return Finding("tokenizer", "ok", f"World vocabulary: {len(tokens)} tokens there and back")


def _numba() -> Finding:
    import numba

    from rwkvkit.tokenizer import lanes

    text = f"{numba.__version__}, llvmlite {importlib.metadata.version('llvmlite')}"
    cache = getattr(lanes.encode_long, "_cache", None)
    if cache is None or type(cache).__name__ == "NullCache":
        remedy = "set NUMBA_CACHE_DIR to a folder that can be written to"
        slow = "no folder keeps its machine code: every process compiles again"
        return Finding("numba", "note", f"{text}; {slow}", remedy)
    return Finding("numba", "ok", f"{text}, machine code kept in {cache.cache_path}")


def _cache_folder() -> Finding:
    folder = files.cache_folder()
    if folder is None:
        return Finding("cache folder", "note", "no home folder", "set XDG_CACHE_HOME")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        slow = "what it would keep is made again each time"
        text = f"{folder} cannot be written to ({error.strerror}): {slow}"
        return Finding("cache folder", "note", text, "fix it, or set XDG_CACHE_HOME to another")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Finding("cache folder", "ok", f"{folder}, {size / 1e6:.1f} MB")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / _GIB:.1f} GiB, {cores()} cores"
    if total < _LITTLE_MEMORY:
        remedy = "rwkvkit prepare --memory 512MiB, and train with train.grad_cp true"
        return Finding("memory", "note", f"{text}: little", remedy)
    return Finding("memory", "ok", text)


def _disk() -> Finding:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB free in {folder}"
    remedy = "free some, or work in another folder"
    if free < _NO_DISK:
        return Finding("disk", "broken", text, remedy)
    return Finding("disk", "note" if free < _LITTLE_DISK else "ok", text, remedy)
