// Sums by head, where a head is the PIECES threads side by side that share a row.
#include "elementwise.cuh"

DEVICE float sum_of_head(float x) {
#pragma unroll
    for (int distance = 1; distance < PIECES; distance *= 2)
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}
DEVICE float dot(const float x[PIECE], const float y[PIECE]) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) sum += x[i] * y[i];
    return sum;
}
// All lanes of a warp exchange sums: those without a row work on zeros.
DEVICE void load_if(bool inside, float x[PIECE], const element *from, long long at) {
    unpack(x, inside ? read(from, at) : make_uint4(0u, 0u, 0u, 0u));
}
