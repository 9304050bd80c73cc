// Cross entropy of rows of logits, and its gradient in their place:
//     loss = log Σ_j e^x_j - x_target
//     x_i <- (e^x_i / Σ_j e^x_j - [i is the target] + [i is the first largest] pull x_i) weight
//
// One block a row, fp32 arithmetic. Threads take turns along the row, 8 elements at a time: once
// forwards for the largest and the sum, once backwards, while the end still lies in a cache, for
// the gradient. A row may begin anywhere; its first and last elements go one by one.
#include "device.cuh"

#ifndef THREADS
#define THREADS 512
#endif
constexpr int WARPS = THREADS / 32;
constexpr int PIECE = 8;  // elements of 16 bytes
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOWEST = -3.402823466e38f;  // below it only -inf, whose exponential is 0
#ifdef ELEMENT_FP16
constexpr element MINUS_INFINITY = 0xfc00;
#else
constexpr element MINUS_INFINITY = 0xff80;
#endif
constexpr element NOT_A_NUMBER = 0x7fff;

// Of some elements: the largest, the sum of e^(x - largest), the first piece that has the largest.
struct Part {
    float largest, sum;
    int piece;
};
struct Shared {
    Part parts[WARPS];
};
static_assert(WARPS <= 32 && sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// A row, cut at 16-byte borders.
struct Row {
    element *at;
    int length, before;  // elements of the first piece that lie before the row
    DEVICE int pieces() const { return (before + length + PIECE - 1) / PIECE; }
    DEVICE int begin(int piece) const { return piece * PIECE - before; }
    DEVICE bool whole(int piece) const {
        return begin(piece) >= 0 && begin(piece) + PIECE <= length;
    }
    DEVICE bool has(int i) const { return i >= 0 && i < length; }
};
DEVICE Row row_of(element *logits, int vocab) {
    element *at = logits + (long long)blockIdx.x * vocab;
    return {at, vocab, (int)((unsigned long long)at / sizeof(element) % PIECE)};
}
DEVICE void load_piece(float x[PIECE], const Row &row, int piece) {
    const int begin = row.begin(piece);
    if (row.whole(piece)) {
        const uint4 loaded = *(const uint4 *)(row.at + begin);
        const pair pairs[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
        for (int i = 0; i < PIECE; i++) x[i] = i % 2 ? high(pairs[i / 2]) : low(pairs[i / 2]);
        return;
    }
#pragma unroll
    for (int i = 0; i < PIECE; i++)
        x[i] = widen(row.has(begin + i) ? row.at[begin + i] : MINUS_INFINITY);
}
DEVICE void store_piece(const Row &row, int piece, const float x[PIECE]) {
    const int begin = row.begin(piece);
    if (row.whole(piece)) {
        *(uint4 *)(row.at + begin) =
            make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
        return;
    }
#pragma unroll
    for (int i = 0; i < PIECE; i++)
        if (row.has(begin + i)) row.at[begin + i] = round_to_element(x[i]);
}

DEVICE float exponential(float x) { return exp2_fast(x * LOG2_E); }

DEVICE Part join(Part a, Part b) {
    const float largest = fmaxf(a.largest, b.largest);
    const bool a_first = a.largest == b.largest ? a.piece < b.piece : a.largest > b.largest;
    return {largest,
            a.sum * exponential(a.largest - largest) + b.sum * exponential(b.largest - largest),
            a_first ? a.piece : b.piece};
}
// Join the parts of a warp's lanes, always in the same order; lane 0 has the result.
DEVICE Part join_lanes(Part part) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2)
        part = join(part, {__shfl_xor_sync(ALL_LANES, part.largest, distance),
                           __shfl_xor_sync(ALL_LANES, part.sum, distance),
                           __shfl_xor_sync(ALL_LANES, part.piece, distance)});
    return part;
}
// Join the parts of all threads; every warp does so for itself, and all get the same bits.
DEVICE Part join_threads(Shared &shared, Part part, Part nothing) {
    const int lane = threadIdx.x & 31;
    part = join_lanes(part);
    if (lane == 0) shared.parts[threadIdx.x >> 5] = part;
    __syncthreads();
    part = join_lanes(lane < WARPS ? shared.parts[lane] : nothing);
    return {__shfl_sync(ALL_LANES, part.largest, 0), __shfl_sync(ALL_LANES, part.sum, 0),
            __shfl_sync(ALL_LANES, part.piece, 0)};
}

// logits: [rows, vocab], overwritten if with_gradient. targets: [rows], a loss of NaN where one is
// no token id. weights: [rows]; where one is 0, loss and gradient are 0, whatever the logits are.
// losses: [rows], not weighted. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    cross_entropy(int vocab, int with_gradient, float pull, element *logits,
                  const long long *targets, const float *weights, float *losses) {
    Shared &shared = shared_memory<Shared>();
    const Row row = row_of(logits, vocab);
    const int pieces = row.pieces();
    const float weight = weights[blockIdx.x];
    if (weight == 0.f) {
        const float zeros[PIECE] = {};
        for (int piece = threadIdx.x; with_gradient && piece < pieces; piece += THREADS)
            store_piece(row, piece, zeros);
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.f;
        return;
    }
    const bool known = targets[blockIdx.x] >= 0 && targets[blockIdx.x] < vocab;
    const int target = known ? (int)targets[blockIdx.x] : 0;
    // Before the barrier: behind it others may have overwritten it.
    const float aim = widen(known ? row.at[target] : NOT_A_NUMBER);

    const Part nothing = {LOWEST, 0.f, pieces};
    Part part = nothing;
    int piece = threadIdx.x;
    for (; piece < pieces; piece += THREADS) {
        float x[PIECE], largest = part.largest;
        load_piece(x, row, piece);
#pragma unroll
        for (int i = 0; i < PIECE; i++) largest = fmaxf(largest, x[i]);
        if (largest > part.largest) part.piece = piece;
        part.sum *= exponential(part.largest - largest);
#pragma unroll
        for (int i = 0; i < PIECE; i++) part.sum += exponential(x[i] - largest);
        part.largest = largest;
    }
    part = join_threads(shared, part, nothing);
    if (threadIdx.x == 0) losses[blockIdx.x] = part.largest - aim + logf(part.sum);
    if (!with_gradient) return;

    const float share = reciprocal(part.sum);
    for (piece -= THREADS; piece >= 0; piece -= THREADS) {
        float x[PIECE], gradient[PIECE];
        load_piece(x, row, piece);
#pragma unroll
        for (int i = 0; i < PIECE; i++) gradient[i] = exponential(x[i] - part.largest) * share;
        const int to_target = target - row.begin(piece);
        if (to_target >= 0 && to_target < PIECE) {
#pragma unroll
            for (int i = 0; i < PIECE; i++) gradient[i] -= i == to_target ? 1.f : 0.f;
        }
        if (piece == part.piece) {
            bool pulled = false;
#pragma unroll
            for (int i = 0; i < PIECE; i++) {
                const bool first = !pulled && x[i] == part.largest;
                gradient[i] += first ? pull * x[i] : 0.f;
                pulled |= first;
            }
        }
#pragma unroll
        for (int i = 0; i < PIECE; i++) gradient[i] *= weight;
        store_piece(row, piece, gradient);
    }
}
