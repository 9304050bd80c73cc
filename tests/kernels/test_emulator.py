"""The emulator finds what it is there to find, and its instructions do what they say."""

import pytest
import torch
from accesses import Watched
from emulator import HERE, Emulator, with_clang

from rwkvkit.ops.cuda.compile import Program

DEVICE = '#line 1 "device.cuh"\n' + (HERE / "device.cuh").read_text() + '\n#line 1 "t.cu"\n'
REVERSE = """struct Shared { float x[64]; };
extern "C" __global__ void reverse(int n, float scale, const float *from, float *to) {
    Shared &shared = shared_memory<Shared>();
    shared.x[threadIdx.x] = from[threadIdx.x] * scale;
    __syncthreads();
    if ((int)threadIdx.x < n) to[threadIdx.x] = shared.x[63 - threadIdx.x];
}
"""
PRODUCT = """struct Shared { element a[256], b[256]; };
extern "C" __global__ void product(const element *a, const element *b, float *d) {
    Shared &shared = shared_memory<Shared>();
    const int lane = threadIdx.x;
    copy_async(&shared.a[lane * 8], a + lane * 8, 16);
    copy_async(&shared.b[lane * 8], b + lane * 8, 16);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    const int place = (lane % 8 + lane / 8 % 2 * 8) * 16 + lane / 16 * 8;
    pair rows[4], columns[4];
    load_matrices(rows, &shared.a[place]);
    load_matrices_transposed(columns, &shared.b[place]);
    for (int half = 0; half < 2; half++) {
        float sum[4] = {0.f, 0.f, 0.f, 0.f};
        mma(sum, rows, columns + 2 * half);
        for (int i = 0; i < 4; i++)
            d[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = sum[i];
    }
}
"""
ACCESSES = """struct Shared { float x[2048]; };
extern "C" __global__ void accesses(int step, int of, float *x, float *to) {
    Shared &shared = shared_memory<Shared>();
    const int i = threadIdx.x;
    shared.x[i * step] = x[i];
    __syncwarp();
    to[(blockIdx.x * of + i) * step] = shared.x[i / 32 * 32 * step + 31 - i % 32];
}
extern "C" __global__ void astray(int from, float *x, float *to) {
    *(float2 *)&to[2 * threadIdx.x] = *(const float2 *)&x[2 * threadIdx.x + from];
}
"""


def build(source: str, folder, **defines: int) -> Emulator:
    return Emulator(Program("t.cu", tuple(defines.items())), folder, DEVICE + source)


@pytest.fixture(scope="module")
def reverse(tmp_path_factory) -> Emulator:
    return build(REVERSE, tmp_path_factory.mktemp("reverse"))


def run_reverse(emulator: Emulator, n: int = 64, size: int = 64) -> torch.Tensor:
    to = torch.zeros(size)
    emulator.launch("reverse", (1, 1, 1), 64, 256, n, 2.0, torch.arange(64.0), to)
    return to


def test_threads_meet_at_a_barrier(reverse):
    assert torch.equal(run_reverse(reverse), 2 * torch.arange(64.0).flip(0))


def test_a_missing_barrier_shows(reverse):
    with reverse.without("t.cu", 5):
        assert run_reverse(reverse).isnan().any()


def test_writing_outside_a_tensor_shows(reverse):
    with pytest.raises(AssertionError, match="argument 3: written outside"):
        run_reverse(reverse, size=60)


def test_reading_outside_a_tensor_gives_nan(reverse):
    to = torch.zeros(64)
    reverse.launch("reverse", (1, 1, 1), 64, 256, 64, 2.0, torch.arange(60.0), to)
    assert to.isnan().sum() == 4


def test_arguments_are_checked(reverse):
    with pytest.raises(AssertionError, match="argument 1"):
        reverse.launch("reverse", (1, 1, 1), 64, 256, 64, 2, torch.ones(64), torch.ones(64))
    with pytest.raises(AssertionError, match="argument 3"):
        reverse.launch(
            "reverse", (1, 1, 1), 64, 256, 64, 2.0, torch.ones(64), torch.ones(64).half()
        )


@pytest.mark.parametrize("fp16", [False, True])
def test_tensor_core_product(tmp_path, fp16):
    emulator = build(PRODUCT, tmp_path, **({"ELEMENT_FP16": 1} if fp16 else {}))
    dtype = torch.float16 if fp16 else torch.bfloat16
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    d = torch.zeros(16, 16)
    emulator.launch("product", (1, 1, 1), 32, 1024, a, b, d)
    torch.testing.assert_close(d, a.float() @ b.float())
    for line in (8, 9):
        with emulator.without("t.cu", line):
            broken = torch.zeros(16, 16)
            emulator.launch("product", (1, 1, 1), 32, 1024, a, b, broken)
            assert not torch.equal(broken, d)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    if with_clang():
        pytest.skip("clang reports accesses in another way")
    return Watched(Program("t.cu"), tmp_path_factory.mktemp("watched"), DEVICE + ACCESSES)


def run_accesses(watched: Watched, step: int, *, blocks: int = 1, of: int = 64):
    to = torch.zeros(64 * step * blocks)
    watched.launch("accesses", (blocks, 1, 1), 64, 8192, step, of, torch.arange(64.0), to)
    faults, accesses = watched.report()
    costs = {(x.memory, x.writes): (x.requests, x.passes, x.least) for x in accesses}
    return faults, costs, to


def test_the_cost_of_accesses(watched):
    faults, costs, to = run_accesses(watched, 1)
    assert torch.equal(to, torch.arange(64.0).view(2, 32).flip(1).flatten())
    assert faults == []
    assert costs[("shared", True)] == costs[("shared", False)] == (2, 2, 2)
    assert costs[("global", True)] == costs[("global", False)] == (2, 8, 8)


@pytest.mark.parametrize("step", [2, 4, 32])
def test_bank_conflicts_and_wasted_sectors(watched, step):
    _, costs, _ = run_accesses(watched, step)
    assert costs[("shared", True)] == (2, 2 * step, 2)
    assert costs[("global", True)] == (2, 2 * 32 * min(4 * step, 32) // 32, 8)


def test_lanes_that_do_not_meet_race(watched):
    with watched.without("t.cu", 6):
        faults, *_ = run_accesses(watched, 1)
    write, read = "write at t.cu:5", "read at t.cu:7"
    assert set(faults) == {f"race: {write}, {read}", f"race: {read}, {write}"}


def test_blocks_that_write_the_same_race(watched):
    assert run_accesses(watched, 1, blocks=2)[0] == []
    assert run_accesses(watched, 1, blocks=2, of=32)[0] == [
        "race: write at t.cu:7, write at t.cu:7"
    ]


@pytest.mark.parametrize(
    ("start", "size", "fault"),
    [(0, 64, None), (1, 65, "misaligned: read at t.cu:10"), (2, 65, "outside: read at t.cu:10")],
)
def test_accesses_that_a_gpu_refuses(watched, start, size, fault):
    watched.launch("astray", (1, 1, 1), 32, 0, start, torch.ones(size), torch.zeros(64))
    assert watched.report()[0] == ([fault] if fault else [])
