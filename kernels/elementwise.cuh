// How the elementwise kernels share out tokens and channels, and sum over tokens.
//
// A block works on WIDTH channels of some rows (a row is a token of a sequence, counted through the
// batch). A thread has 8 channels, 16 bytes, of ROWS consecutive rows; what belongs to the channels,
// such as mixing weights, it reads once. Arithmetic is in fp32.
#include "device.cuh"

#ifndef WIDTH
#define WIDTH 64
#endif
constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int PIECE = 8;                      // channels a thread
constexpr int PIECES = WIDTH / PIECE;         // threads side by side
constexpr int STREAMS = THREADS / PIECES;     // threads below each other
constexpr int ROWS = 8;                       // rows a thread
constexpr int BLOCK_ROWS = STREAMS * ROWS;
constexpr float LOG2_E = 1.4426950408889634f;

// Where a thread works. Grid: the channels in pieces of WIDTH, the rows in pieces of BLOCK_ROWS.
struct Place {
    int stream, channel;   // of the block's; of all
    int first, last;       // its rows, without the last; none where last <= first
};
DEVICE Place place(int rows) {
    const int stream = threadIdx.x / PIECES;
    const int first = blockIdx.y * BLOCK_ROWS + stream * ROWS;
    return {stream, (int)(blockIdx.x * WIDTH + threadIdx.x % PIECES * PIECE), first,
            first + ROWS < rows ? first + ROWS : rows};
}

DEVICE float sigmoid(float x) { return reciprocal(1.f + exp2_fast(-LOG2_E * x)); }

DEVICE void unpack(float x[PIECE], uint4 from) {
    const pair pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = low(pairs[i]);
        x[2 * i + 1] = high(pairs[i]);
    }
}
DEVICE uint4 pack_piece(const float x[PIECE]) {
    return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
}
DEVICE uint4 read(const element *from, long long at) { return *(const uint4 *)(from + at); }
DEVICE void load(float x[PIECE], const element *from, long long at) { unpack(x, read(from, at)); }
DEVICE void store(element *to, long long at, const float x[PIECE]) {
    *(uint4 *)(to + at) = pack_piece(x);
}

// Put eight floats into shared memory, 16 bytes at a time.
DEVICE void put(float *to, const float x[PIECE]) {
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
    *(float4 *)(to + 4) = make_float4(x[4], x[5], x[6], x[7]);
}

// ---- sums over the block's rows, always in the same order

template <int SUMS>
struct WarpSums {
    float of[WARPS][SUMS][WIDTH];
};
// Add up what a warp's threads hold of the same channels.
template <int SUMS>
DEVICE void add_in_warp(WarpSums<SUMS> &sums, float (*mine)[PIECE]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int sum = 0; sum < SUMS; sum++) {
        float added[PIECE];
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            added[i] = mine[sum][i];
#pragma unroll
            for (int distance = PIECES; distance < 32; distance *= 2)
                added[i] += __shfl_xor_sync(ALL_LANES, added[i], distance);
        }
        if (lane < PIECES) put(&sums.of[threadIdx.x >> 5][sum][lane * PIECE], added);
    }
}
// After a barrier: add up the warps' sums, and store the block's at partial [rows, SUMS, channels].
template <int SUMS>
DEVICE void store_sums(float *partial, const WarpSums<SUMS> &sums, int channels) {
    for (int i = threadIdx.x; i < SUMS * WIDTH; i += THREADS) {
        float x = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) x += sums.of[warp][i / WIDTH][i % WIDTH];
        const long long row = (long long)blockIdx.y * SUMS + i / WIDTH;
        partial[row * channels + blockIdx.x * WIDTH + i % WIDTH] = x;
    }
}
