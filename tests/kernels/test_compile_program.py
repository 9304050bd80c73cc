"""Compiling without a GPU: includes, what the assembler reports, what is kept on disk."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rwkvkit.errors import SetupError
from rwkvkit.ops.cuda import compile as compiling
from rwkvkit.ops.cuda.compile import Program, compile_program, parse_resources, read_source

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="NVIDIA publishes NVRTC for Linux and Windows only"
)

PROGRAM = Program("twice.cu", (("FACTOR", 2),))


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "helper.cuh").write_text("__device__ float times(float x) { return FACTOR * x; }\n")
    (folder / "twice.cu").write_text(
        '#include "helper.cuh"\n#include "helper.cuh"\n'
        'extern "C" __global__ void twice(float *x) { x[threadIdx.x] = times(x[threadIdx.x]); }\n'
    )
    monkeypatch.setattr(compiling, "bundled", lambda name: tmp_path / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.bin"))


def test_an_include_is_put_in_once():
    source = read_source("twice.cu")
    assert source.count("__device__") == 1
    assert '#line 3 "twice.cu"\nextern' in source


def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    first = compile_program(PROGRAM, "sm_80")
    assert first.cubin[:4] == b"\x7fELF"
    assert first.resources["twice"].registers > 0
    assert first.resources["twice"].spill_bytes == 0
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(compiling, "_compile", None)
    assert compile_program(PROGRAM, "sm_80") == first


def test_fewer_blocks_rather_than_spills(kernels):
    """80 numbers a thread: 2 blocks of 512 threads leave 64 registers each, 1 block 128."""
    (kernels / "many.cu").write_text(
        'extern "C" __global__ void __launch_bounds__(512, MIN_BLOCKS) many(float *x, int n) {\n'
        "  float sums[80];\n#pragma unroll\n"
        "  for (int i = 0; i < 80; i++) sums[i] = x[i * 512 + threadIdx.x];\n"
        "  for (int step = 0; step < n; step++)\n#pragma unroll\n"
        "    for (int i = 0; i < 80; i++) sums[i] = sums[i] * sums[(i + 1) % 80] + x[step];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 80; i++) x[i * 512 + threadIdx.x] = sums[i];\n}\n"
    )
    two, one = (Program("many.cu", (("MIN_BLOCKS", blocks),)) for blocks in (2, 1))
    source = read_source("many.cu")
    assert compiling._compile(source, two, "sm_80").resources["many"].spill_bytes > 0
    found = compile_program(two, "sm_80").resources["many"]
    assert found == compile_program(one, "sm_80").resources["many"]
    assert found.spill_bytes == 0
    assert found.registers > 64


def test_another_source_macro_or_architecture_is_another_binary(tmp_path, kernels):
    compile_program(PROGRAM, "sm_80")
    compile_program(PROGRAM, "sm_120")
    compile_program(Program("twice.cu", (("FACTOR", 3),)), "sm_80")
    with (kernels / "helper.cuh").open("a") as file:
        file.write("// changed\n")
    compile_program(PROGRAM, "sm_80")
    assert len(kept(tmp_path)) == 4


def test_a_damaged_binary_is_compiled_again(tmp_path):
    first = compile_program(PROGRAM, "sm_80")
    [path] = kept(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert compile_program(PROGRAM, "sm_80") == first
    path.write_bytes(b"")
    assert compile_program(PROGRAM, "sm_80") == first


def test_without_a_cache_folder_it_still_compiles(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compile_program(PROGRAM, "sm_80").cubin


def test_an_error_names_the_file_the_line_and_the_way_out(kernels):
    (kernels / "helper.cuh").write_text("\nbroken\n")
    with pytest.raises(SetupError, match=r"helper.cuh\(2\)") as caught:
        compile_program(PROGRAM, "sm_80")
    assert "train.wkv chunked" in caught.value.hint


def test_bindings_of_another_cuda_than_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    compiling.toolkit_versions.cache_clear()
    with pytest.raises(SetupError, match=r"torch is built for CUDA 12.8") as caught:
        compile_program(PROGRAM, "sm_80")
    assert "pip install 'rwkvkit[cu12]'" in caught.value.hint
    monkeypatch.undo()
    compiling.toolkit_versions.cache_clear()


def test_missing_packages_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    compiling.toolkit_versions.cache_clear()
    with pytest.raises(SetupError, match="cuda-core and NVRTC") as caught:
        compile_program(PROGRAM, "sm_80")
    assert "pip install 'rwkvkit[cu13]'" in caught.value.hint
    monkeypatch.undo()
    compiling.toolkit_versions.cache_clear()


def test_an_old_cuda_core_is_named(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(
        compiling.metadata, "version", lambda name: "0.5.1" if name == "cuda-core" else real(name)
    )
    compiling.toolkit_versions.cache_clear()
    with pytest.raises(SetupError, match=r"cuda-core is 0.5.1, too old: 1.0 is needed"):
        compile_program(PROGRAM, "sm_80")
    monkeypatch.undo()
    compiling.toolkit_versions.cache_clear()


def test_resources_are_read_from_the_log():
    log = """ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 512 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Used 8 registers, 352 bytes cmem[0]
"""
    a, b = parse_resources(log).values()
    assert (a.registers, a.spill_bytes, a.stack_bytes, a.shared_bytes) == (24, 16, 8, 512)
    assert (b.registers, b.spill_bytes, b.stack_bytes, b.shared_bytes) == (8, 0, 0, 0)
