// The value residual: out = v + (v_first - v) γ with γ = σ(v0 + gate), and its gradients
//     dv = D (1 - γ);   dv_first = D γ;   dgate = D (v_first - v) γ (1 - γ), over tokens dv0.
#include "elementwise.cuh"

// v, v_first, gate, out: [rows, channels]; v0: [channels].
extern "C" __global__ void __launch_bounds__(256)
    residual_value_forward(int rows, int channels, const element *v, const element *v_first,
                           const element *gate, const element *v0, element *out) {
    const Place at = place(rows);
    float weights[PIECE];
    load(weights, v0, at.channel);
#pragma unroll 2
    for (int row = at.first; row < at.last; row++) {
        const long long here = (long long)row * channels + at.channel;
        float x[PIECE], first[PIECE], share[PIECE];
        load(x, v, here);
        load(first, v_first, here);
        load(share, gate, here);
#pragma unroll
        for (int i = 0; i < PIECE; i++)
            x[i] += (first[i] - x[i]) * sigmoid(weights[i] + share[i]);
        store(out, here, x);
    }
}

struct Shared {
    WarpSums<1> sums;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// grad: of out. partial: [blocks along the rows, channels] or null, to be summed for that of v0.
extern "C" __global__ void __launch_bounds__(256)
    residual_value_backward(int rows, int channels, const element *grad, const element *v,
                            const element *v_first, const element *gate, const element *v0,
                            element *dv, element *dv_first, element *dgate, float *partial) {
    Shared &shared = shared_memory<Shared>();
    const Place at = place(rows);
    float weights[PIECE], sums[1][PIECE] = {};
    load(weights, v0, at.channel);
#pragma unroll 1
    for (int row = at.first; row < at.last; row++) {
        const long long here = (long long)row * channels + at.channel;
        float d[PIECE], x[PIECE], first[PIECE], share[PIECE];
        load(d, grad, here);
        load(x, v, here);
        load(first, v_first, here);
        load(share, gate, here);
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            const float s = sigmoid(weights[i] + share[i]), change = first[i] - x[i];
            first[i] = d[i] * s;
            x[i] = d[i] - first[i];
            share[i] = first[i] * change * (1.f - s);
            sums[0][i] += share[i];
        }
        store(dv, here, x);
        store(dv_first, here, first);
        store(dgate, here, share);
    }
    if (!partial) return;
    add_in_warp<1>(shared.sums, sums);
    __syncthreads();
    store_sums<1>(partial, shared.sums, channels);
}
