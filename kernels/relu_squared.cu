// out = max(x, 0)², and its gradient from the output, which is kept anyway: 2 √out D.
#include "elementwise.cuh"

// Eight numbers a thread; count is a multiple of 8, as the tensors' last dimension is.
DEVICE long long first_number() {
    return ((long long)blockIdx.x * THREADS + threadIdx.x) * PIECE;
}

// x, out: count numbers, in the unit of 8 of them.
extern "C" __global__ void __launch_bounds__(256)
    relu_squared_forward(int pieces, const element *x, element *out) {
    const long long at = first_number();
    if (at / PIECE >= pieces) return;
    float value[PIECE];
    load(value, x, at);
#pragma unroll
    for (int i = 0; i < PIECE; i++) value[i] = value[i] < 0.f ? 0.f : value[i] * value[i];
    store(out, at, value);
}

extern "C" __global__ void __launch_bounds__(256)
    relu_squared_backward(int pieces, const element *out, const element *grad, element *dx) {
    const long long at = first_number();
    if (at / PIECE >= pieces) return;
    float value[PIECE], d[PIECE];
    load(value, out, at);
    load(d, grad, at);
#pragma unroll
    for (int i = 0; i < PIECE; i++) d[i] *= 2.f * square_root(value[i]);
    store(dx, at, d);
}
