// What follows WKV: out = (norm(y) weight + bias + s v) g by head, with s = Σ r k r_k.
//
// With n the normed y, d its standard deviation and D the gradient of out, dz = D g:
//     dg = D z;  dv = s dz;  ds = Σ dz v;  dr = ds k r_k;  dk = ds r r_k;  dr_k = Σ_t ds r k
//     dweight = Σ_t dz n;  dbias = Σ_t dz;  dn = dz weight;  dy = (dn - mean(dn) - n mean(dn n)) / d
// A head is PIECES threads side by side. Statistics are computed again in the backward pass.
#include "heads.cuh"

// Norm y in its place; returns 1 / d.
DEVICE float norm(float y[PIECE], float eps) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) sum += y[i];
    const float mean = sum_of_head(sum) * (1.f / WIDTH);
#pragma unroll
    for (int i = 0; i < PIECE; i++) y[i] -= mean;
    const float scale = reciprocal_root(sum_of_head(dot(y, y)) * (1.f / WIDTH) + eps);
#pragma unroll
    for (int i = 0; i < PIECE; i++) y[i] *= scale;
    return scale;
}
// y, r, k, v, g, out: [rows, channels]; weight, bias, r_k: [channels].
extern "C" __global__ void __launch_bounds__(256)
    norm_gate_forward(int rows, int channels, float eps, const element *y, const element *r,
                      const element *k, const element *v, const element *g, const element *weight,
                      const element *bias, const element *r_k, element *out) {
    const Place at = place(rows);
    float scale[PIECE], add[PIECE], bonus[PIECE];
    load(scale, weight, at.channel);
    load(add, bias, at.channel);
    load(bonus, r_k, at.channel);
#pragma unroll 1
    for (int i = 0; i < ROWS; i++) {
        const bool inside = at.first + i < at.last;
        const long long here = (long long)(at.first + i) * channels + at.channel;
        float y_[PIECE], r_[PIECE], k_[PIECE], v_[PIECE], g_[PIECE];
        load_if(inside, y_, y, here);
        load_if(inside, r_, r, here);
        load_if(inside, k_, k, here);
        load_if(inside, v_, v, here);
        load_if(inside, g_, g, here);
        norm(y_, eps);
#pragma unroll
        for (int j = 0; j < PIECE; j++) r_[j] *= bonus[j];
        const float s = sum_of_head(dot(r_, k_));
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            y_[j] = (y_[j] * scale[j] + add[j] + s * v_[j]) * g_[j];
        if (inside) store(out, here, y_);
    }
}

enum { WEIGHT, BIAS, R_K, SUMS };
struct Shared {
    WarpSums<SUMS> sums;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// grad: of out. partial: [blocks along the rows, 3, channels] or null, to be summed for the gradients
// of weight, bias and r_k.
extern "C" __global__ void __launch_bounds__(256, MIN_BLOCKS)
    norm_gate_backward(int rows, int channels, float eps, const element *grad, const element *y,
                       const element *r, const element *k, const element *v, const element *g,
                       const element *weight, const element *bias, const element *r_k, element *dy,
                       element *dr, element *dk, element *dv, element *dg, float *partial) {
    Shared &shared = shared_memory<Shared>();
    const Place at = place(rows);
    float sums[SUMS][PIECE] = {};
#pragma unroll 1
    for (int i = 0; i < ROWS; i++) {
        const bool inside = at.first + i < at.last;
        const long long here = (long long)(at.first + i) * channels + at.channel;
        float n[PIECE], r_[PIECE], k_[PIECE], v_[PIECE], d[PIECE], z[PIECE], weights[PIECE];
        load_if(inside, n, y, here);
        load_if(inside, r_, r, here);
        load_if(inside, k_, k, here);
        load_if(inside, v_, v, here);
        load_if(inside, d, grad, here);
        load_if(inside, z, g, here);
        const float scale = norm(n, eps);

        float product[PIECE], dz[PIECE];  // r k; D g
#pragma unroll
        for (int j = 0; j < PIECE; j++) product[j] = r_[j] * k_[j], dz[j] = d[j] * z[j];
        load(weights, r_k, at.channel);
        const float s = sum_of_head(dot(product, weights));
        const float ds = sum_of_head(dot(dz, v_));
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            sums[R_K][j] += ds * product[j];
            const float r_before = r_[j];
            r_[j] = ds * k_[j] * weights[j];
            k_[j] = ds * r_before * weights[j];
        }
        if (inside) store(dr, here, r_);
        if (inside) store(dk, here, k_);

        load(z, bias, at.channel);
        load(weights, weight, at.channel);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            sums[WEIGHT][j] += dz[j] * n[j];
            sums[BIAS][j] += dz[j];
            d[j] *= n[j] * weights[j] + z[j] + s * v_[j];
            v_[j] = s * dz[j];
            dz[j] *= weights[j];  // now dn
        }
        if (inside) store(dg, here, d);
        if (inside) store(dv, here, v_);

        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum += dz[j];
        const float mean = sum_of_head(sum) * (1.f / WIDTH);
        const float along = sum_of_head(dot(dz, n)) * (1.f / WIDTH);
#pragma unroll
        for (int j = 0; j < PIECE; j++) dz[j] = (dz[j] - mean - n[j] * along) * scale;
        if (inside) store(dy, here, dz);
    }
    if (!partial) return;
    add_in_warp<SUMS>(shared.sums, sums);
    __syncthreads();
    store_sums<SUMS>(partial, shared.sums, channels);
}
