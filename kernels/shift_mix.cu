// The token-shift mix: out_m = x + (x of the token before - x) * mix_m, for one or six m at once.
//
// With D_m the gradient of out_m and p_t the token before (zero, or `last`, at a start):
//     dmix_m = Σ_t D_m,t (p_t - x_t),   dx_t = Σ_m D_m,t (1 - mix_m) + Σ_m D_m,t+1 mix_m
// where the second sum is only there if token t + 1 has x_t before it.
#include "elementwise.cuh"

#ifndef MIXES
#define MIXES 6
#endif

struct Inputs {
    const element *x, *last;
    const uint8 *resets;
    int tokens, channels;

    DEVICE bool starts(int row) const { return resets && resets[row]; }
    // What comes before a row, given what lies there.
    DEVICE uint4 previous(int row, uint4 before, int channel) const {
        if (starts(row)) return make_uint4(0u, 0u, 0u, 0u);
        if (row % tokens) return before;
        if (!last) return make_uint4(0u, 0u, 0u, 0u);
        return read(last, (long long)(row / tokens) * channels + channel);
    }
    DEVICE uint4 at(int row, int channel) const {
        return read(x, (long long)row * channels + channel);
    }
    // Whether the row before is the token before.
    DEVICE bool follows(int row) const { return row % tokens && !starts(row); }
};

// x, out: [rows, channels], rows = B * tokens; last: [B, channels] or null; resets: [rows] or null;
// mix: [channels]. Of six mixes and outputs the first MIXES are there.
extern "C" __global__ void __launch_bounds__(256)
    shift_mix_forward(int rows, int tokens, int channels, const element *x, const element *last,
                      const uint8 *resets, const element *mix0, const element *mix1,
                      const element *mix2, const element *mix3, const element *mix4,
                      const element *mix5, element *out0, element *out1, element *out2,
                      element *out3, element *out4, element *out5) {
    const element *mixes[6] = {mix0, mix1, mix2, mix3, mix4, mix5};
    element *out[6] = {out0, out1, out2, out3, out4, out5};
    const Inputs in = {x, last, resets, tokens, channels};
    const Place at = place(rows);
    if (at.last <= at.first) return;
    uint4 mix[MIXES];
#pragma unroll
    for (int m = 0; m < MIXES; m++) mix[m] = read(mixes[m], at.channel);
    uint4 before = at.first ? in.at(at.first - 1, at.channel) : make_uint4(0u, 0u, 0u, 0u);
#pragma unroll 2
    for (int row = at.first; row < at.last; row++) {
        const uint4 here = in.at(row, at.channel);
        float value[PIECE], change[PIECE];
        unpack(value, here);
        unpack(change, in.previous(row, before, at.channel));
#pragma unroll
        for (int i = 0; i < PIECE; i++) change[i] -= value[i];
#pragma unroll
        for (int m = 0; m < MIXES; m++) {
            float mixed[PIECE];
            unpack(mixed, mix[m]);
#pragma unroll
            for (int i = 0; i < PIECE; i++) mixed[i] = value[i] + change[i] * mixed[i];
            store(out[m], (long long)row * channels + at.channel, mixed);
        }
        before = here;
    }
}

struct Shared {
    WarpSums<MIXES> sums;
    float back[STREAMS + 1][WIDTH];  // what a stream's first row gives to the row before it
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// back = Σ_m D_m mix_m, rest = Σ_m D_m (1 - mix_m), and each mix's sum += D_m change. The mixes are
// read again for each row: from the cache, and registers are short.
DEVICE void take_gradients(float back[PIECE], float rest[PIECE], float (*sums)[PIECE],
                           const float change[PIECE], const element *const *grads,
                           const element *const *mixes, long long row, int channels, int channel) {
#pragma unroll
    for (int i = 0; i < PIECE; i++) back[i] = rest[i] = 0.f;
#pragma unroll
    for (int m = 0; m < MIXES; m++) {
        float grad[PIECE], mix[PIECE];
        load(grad, grads[m], row * channels + channel);
        load(mix, mixes[m], channel);
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            const float part = grad[i] * mix[i];
            back[i] += part;
            rest[i] += grad[i] - part;
            sums[m][i] += grad[i] * change[i];
        }
    }
}

// grad: the gradients of the outputs; dx: [rows, channels]; dlast: [B, channels] or null; partial:
// [blocks along the rows, MIXES, channels] or null, to be summed for the gradients of the mixes.
extern "C" __global__ void __launch_bounds__(256, MIN_BLOCKS)
    shift_mix_backward(int rows, int tokens, int channels, const element *x, const element *last,
                       const uint8 *resets, const element *mix0, const element *mix1,
                       const element *mix2, const element *mix3, const element *mix4,
                       const element *mix5, const element *grad0, const element *grad1,
                       const element *grad2, const element *grad3, const element *grad4,
                       const element *grad5, element *dx, element *dlast, float *partial) {
    const element *mixes[6] = {mix0, mix1, mix2, mix3, mix4, mix5};
    const element *grads[6] = {grad0, grad1, grad2, grad3, grad4, grad5};
    Shared &shared = shared_memory<Shared>();
    const Inputs in = {x, last, resets, tokens, channels};
    const Place at = place(rows);
    float sums[MIXES][PIECE], back[PIECE], rest[PIECE], waiting[PIECE];
#pragma unroll
    for (int m = 0; m < MIXES; m++)
#pragma unroll
        for (int i = 0; i < PIECE; i++) sums[m][i] = 0.f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) back[i] = 0.f;
    uint4 before = make_uint4(0u, 0u, 0u, 0u);
    if (at.first && at.first < at.last) before = in.at(at.first - 1, at.channel);
    float *first = &shared.back[at.stream][threadIdx.x % PIECES * PIECE];
    put(first, back);
#pragma unroll 1
    for (int row = at.first; row < at.last; row++) {
        const long long here = (long long)row * channels + at.channel;
        const uint4 mine = in.at(row, at.channel);
        float change[PIECE], value[PIECE];
        unpack(value, mine);
        unpack(change, in.previous(row, before, at.channel));
#pragma unroll
        for (int i = 0; i < PIECE; i++) change[i] -= value[i];
        take_gradients(back, rest, sums, change, grads, mixes, row, channels, at.channel);
        if (dlast && row % tokens == 0) {
            float none[PIECE] = {};
            store(dlast, (long long)(row / tokens) * channels + at.channel,
                  in.starts(row) ? none : back);
        }
#pragma unroll
        for (int i = 0; i < PIECE; i++) back[i] = in.follows(row) ? back[i] : 0.f;
        if (row == at.first) {
            put(first, back);
        } else {
#pragma unroll
            for (int i = 0; i < PIECE; i++) waiting[i] += back[i];
            store(dx, here - channels, waiting);
        }
#pragma unroll
        for (int i = 0; i < PIECE; i++) waiting[i] = rest[i];
        before = mine;
    }
    if (at.stream == STREAMS - 1) {  // of the row that begins the next block
        const int row = at.first + ROWS;
        float unused[MIXES][PIECE] = {}, change[PIECE] = {};
#pragma unroll
        for (int i = 0; i < PIECE; i++) back[i] = 0.f;
        if (row < rows && in.follows(row))
            take_gradients(back, rest, unused, change, grads, mixes, row, channels, at.channel);
        put(first + WIDTH, back);
    }
    if (partial) add_in_warp<MIXES>(shared.sums, sums);
    __syncthreads();
    if (at.first < at.last) {
        const bool whole = at.last == at.first + ROWS;  // else the rows end here
        if (whole)
#pragma unroll
            for (int i = 0; i < PIECE; i++) waiting[i] += first[WIDTH + i];
        store(dx, (long long)(at.last - 1) * channels + at.channel, waiting);
    }
    if (partial) store_sums<MIXES>(partial, shared.sums, channels);
}
