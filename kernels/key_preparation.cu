// What WKV takes beside r and v, of keys k and two low-rank products w and rate, by head:
//     log_w = -e^-½ σ(w0 + w);   kk = k k_k / |k k_k|;   ρ = σ(a0 + rate)
//     k' = k (1 + (ρ - 1) k_a);   a = -kk;   b = kk ρ
//
// Backward, with e = db ρ - da the gradient of kk:
//     dk = dk' (1 + (ρ - 1) k_a) + f k_k,   f = (e - kk (kk·e)) / |k k_k|;   dk_k = Σ_t f k
//     dk_a = Σ_t dk' k (ρ - 1);   drate = (db kk + dk' k k_a) ρ (1 - ρ), over tokens da0
//     dw = -e^-½ dlog_w σ (1 - σ), over tokens dw0
// A norm below 1e-12 counts as 1e-12. A head is PIECES threads side by side.
#include "heads.cuh"

constexpr float LOG_W_SCALE = -0.6065306597126334f;

// Channels of a row, as both passes need them.
struct Row {
    float k[PIECE], kk[PIECE], rate[PIECE];
    float inverse;  // 1 / |k k_k|
    bool normed;    // and not held at 1e12
};
DEVICE void prepare(Row &row, bool inside, long long at, int channel, const element *k,
                    const element *rate, const element *a0, const element *k_k) {
    float weights[PIECE];
    load_if(inside, row.k, k, at);
    load_if(inside, row.rate, rate, at);
    load(weights, a0, channel);
#pragma unroll
    for (int i = 0; i < PIECE; i++) row.rate[i] = sigmoid(weights[i] + row.rate[i]);
    load(weights, k_k, channel);
#pragma unroll
    for (int i = 0; i < PIECE; i++) row.kk[i] = row.k[i] * weights[i];
    const float square = sum_of_head(dot(row.kk, row.kk));
    row.normed = square > 1e-24f;
    row.inverse = row.normed ? reciprocal_root(square) : 1e12f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) row.kk[i] *= row.inverse;
}

// k, w, rate and the outputs: [rows, channels]; w0, a0, k_k, k_a: [channels].
extern "C" __global__ void __launch_bounds__(256)
    prepare_keys_forward(int rows, int channels, const element *k, const element *w,
                         const element *rate, const element *w0, const element *a0,
                         const element *k_k, const element *k_a, element *log_w, element *written,
                         element *a, element *b) {
    const Place at = place(rows);
#pragma unroll 1
    for (int i = 0; i < ROWS; i++) {
        const bool inside = at.first + i < at.last;
        const long long here = (long long)(at.first + i) * channels + at.channel;
        Row row;
        float decay[PIECE], weights[PIECE], out[PIECE];
        load_if(inside, decay, w, here);
        prepare(row, inside, here, at.channel, k, rate, a0, k_k);
        if (!inside) continue;
        load(weights, w0, at.channel);
#pragma unroll
        for (int j = 0; j < PIECE; j++) out[j] = LOG_W_SCALE * sigmoid(weights[j] + decay[j]);
        store(log_w, here, out);
        load(weights, k_a, at.channel);
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            out[j] = row.k[j] * (1.f + (row.rate[j] - 1.f) * weights[j]);
        store(written, here, out);
#pragma unroll
        for (int j = 0; j < PIECE; j++) out[j] = -row.kk[j];
        store(a, here, out);
#pragma unroll
        for (int j = 0; j < PIECE; j++) out[j] = row.kk[j] * row.rate[j];
        store(b, here, out);
    }
}

enum { W0, A0, K_K, K_A, SUMS };
struct Shared {
    WarpSums<SUMS> sums;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// dlog_w, dwritten, da, db: the gradients of the outputs. partial: [blocks along the rows, 4,
// channels] or null, to be summed for the gradients of w0, a0, k_k and k_a.
extern "C" __global__ void __launch_bounds__(256, MIN_BLOCKS)
    prepare_keys_backward(int rows, int channels, const element *k, const element *w,
                          const element *rate, const element *w0, const element *a0,
                          const element *k_k, const element *k_a, const element *dlog_w,
                          const element *dwritten, const element *da, const element *db,
                          element *dk, element *dw, element *drate, float *partial) {
    Shared &shared = shared_memory<Shared>();
    const Place at = place(rows);
    float sums[SUMS][PIECE] = {};
#pragma unroll 1
    for (int i = 0; i < ROWS; i++) {
        const bool inside = at.first + i < at.last;
        const long long here = (long long)(at.first + i) * channels + at.channel;
        float x[PIECE], d[PIECE], weights[PIECE];
        load_if(inside, x, w, here);
        load_if(inside, d, dlog_w, here);
        load(weights, w0, at.channel);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            const float s = sigmoid(weights[j] + x[j]);
            x[j] = LOG_W_SCALE * d[j] * s * (1.f - s);
            sums[W0][j] += x[j];
        }
        if (inside) store(dw, here, x);

        Row row;
        float e[PIECE];
        prepare(row, inside, here, at.channel, k, rate, a0, k_k);
        load_if(inside, d, db, here);
        load_if(inside, x, da, here);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            e[j] = d[j] * row.rate[j] - x[j];
            d[j] *= row.kk[j];
        }
        load_if(inside, x, dwritten, here);
        load(weights, k_a, at.channel);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            const float less = row.rate[j] - 1.f, through = x[j] * row.k[j];
            sums[K_A][j] += through * less;
            d[j] = -(d[j] + through * weights[j]) * row.rate[j] * less;
            sums[A0][j] += d[j];
            x[j] *= 1.f + less * weights[j];
        }
        if (inside) store(drate, here, d);

        float along = sum_of_head(dot(row.kk, e));
        if (!row.normed) along = 0.f;
        load(weights, k_k, at.channel);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            const float f = (e[j] - row.kk[j] * along) * row.inverse;
            sums[K_K][j] += f * row.k[j];
            x[j] += f * weights[j];
        }
        if (inside) store(dk, here, x);
    }
    if (!partial) return;
    add_in_warp<SUMS>(shared.sums, sums);
    __syncthreads();
    store_sums<SUMS>(partial, shared.sums, channels);
}
