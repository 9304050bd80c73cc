// The instructions of the GPU that the kernels use, behind names; nothing else in this folder holds
// PTX. No CUDA header is needed. The tests replace this file by one that runs on a CPU
// (tests/kernels/emulator/device.cuh), so every name here has its twin there.
//
// ELEMENT_FP16 defined: tensors and tensor-core operands are fp16; otherwise bf16. With fp16 all but
// what says so runs on an sm_75, too, whose tensor cores take half as much at a time and which copies
// nothing asynchronously.

typedef unsigned char uint8;
typedef unsigned short element;  // the bits of a bf16 or fp16 number
typedef unsigned int pair;       // two of them, the first in the low half

#define DEVICE __device__ __forceinline__
#define ALL_LANES 0xffffffffu
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define OLD_TENSOR_CORES 1
#else
#define OLD_TENSOR_CORES 0
#endif

// ---- numbers

// fp16 whatever an element is, for tensors whose products need the exponents of bf16.
DEVICE float widen_fp16(unsigned short x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
}
DEVICE pair pack_fp16(float first, float second) {
    pair packed;
#if OLD_TENSOR_CORES
    asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2;"
        " mov.b32 %0, {low, high}; }"
        : "=r"(packed)
        : "f"(first), "f"(second));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
#endif
    return packed;
}

#ifdef ELEMENT_FP16
DEVICE float widen(element x) { return widen_fp16(x); }
DEVICE pair pack(float first, float second) { return pack_fp16(first, second); }
#else
DEVICE float widen(element x) { return __uint_as_float((unsigned)x << 16); }
DEVICE pair pack(float first, float second) {
    pair packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}
#endif
DEVICE float low(pair x) { return widen((element)x); }
DEVICE float high(pair x) { return widen((element)(x >> 16)); }
DEVICE element round_to_element(float x) { return (element)pack(x, 0.f); }

// The products of two pairs of bf16 numbers, rounded.
DEVICE pair multiply(pair x, pair y) {
    pair product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(x), "r"(y), "r"(0x80008000u));
    return product;
}

// 2^x and 1/x, to about 2 units in the last place; denormals count as zero.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// √x and 1/√x, likewise.
DEVICE float square_root(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- tensor cores and the moves that feed them

// d [16 x 8] += a [16 x 16] b [16 x 8], fp32 sums; the layouts are those of common.cuh.
DEVICE void mma(float d[4], const pair a[4], const pair b[2]) {
#if OLD_TENSOR_CORES
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#else
#ifdef ELEMENT_FP16
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#endif
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d [16 x 8] += a [16 x 8] b [8 x 8] in bf16: the first, or the second, half of mma's a and b.
DEVICE void mma_half(float d[4], const pair a[2], pair b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(pair to[4], const element *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// The same, each matrix transposed.
DEVICE void load_matrices_transposed(pair to[4], const element *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// Transpose an 8 x 8 matrix that a warp holds, two elements of row lane / 4 a lane.
DEVICE pair transpose_matrix(pair x) {
    pair transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(x));
    return transposed;
}

// ---- asynchronous copies, global to shared memory; on an sm_75 they are done at once

// Start copying 16 bytes; of the source only `bytes` (0 or 16) are read, the rest become zero.
DEVICE void copy_async(void *to_shared, const void *from_global, int bytes) {
#if OLD_TENSOR_CORES
    *(uint4 *)to_shared = bytes ? *(const uint4 *)from_global : make_uint4(0u, 0u, 0u, 0u);
#else
    unsigned address = (unsigned)__cvta_generic_to_shared(to_shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from_global),
                 "r"(bytes)
                 : "memory");
#endif
}
// Close the group of the copies started since the last one.
DEVICE void copy_async_commit() {
#if !OLD_TENSOR_CORES
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Wait until at most `PENDING` of this thread's groups are unfinished.
template <int PENDING>
DEVICE void copy_async_wait() {
#if !OLD_TENSOR_CORES
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Keep the compiler from moving memory accesses across: fewer values wait in registers.
DEVICE void keep_order() { asm volatile("" ::: "memory"); }

// The same number, which the compiler no longer knows: addresses made from it are made again where they
// are used, and wait in no registers.
DEVICE int forget(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// The block's dynamic shared memory, seen as a struct.
template <typename Shared>
DEVICE Shared &shared_memory() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return *reinterpret_cast<Shared *>(bytes);
}
