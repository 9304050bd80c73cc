// The value side of the WKV6 backward kernel, one chunk; wkv6_backward.cu has the formulas.
//
//     dV = Aᵀ dY + (k 2^(total - c)) D,    D <- diag(2^total) D + (r 2^c')ᵀ dY
#include "wkv6_chunk.cuh"

struct ValueSide {
    float D[kHead / 8][4];  // rows: the warp's values; columns: keys
};

template <int KEYS, int VALUES>
DEVICE void value_side(ValueSide &side, float dv[2][4], const BackwardTiles<KEYS, VALUES> &tiles,
                       const Starts &starts, const Lane &at) {
    constexpr int kRow = row_of(KEYS);
    const KeyTiles<KEYS> &keys = tiles.keys;
    float A[2][4];  // transposed: [s][t]
    pair a[4], b[4];
    clear<2>(A);
    clear<2>(dv);
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        const Powers left = keys.powers[n * 8 + at.column / 2];
        const Powers right = keys.powers[n * 8 + at.column / 2 + 4];
        load_a<kRow>(a, keys.k + n * 16);
        load_b_transposed<kRow>(b, keys.r + n * 16);
        mma(A[0], a, b);
        a[0] = multiply(a[0], left.cross);
        a[2] = multiply(a[2], right.cross);
        mma(A[1], a, b + 2);
        load_a<kRow>(a, keys.write + n * 16);
        repack_transposed(b, side.D + 2 * n);
        multiply_add(dv, a, b);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int s = at.row + (i >> 1) * 8, t = n * 8 + at.column + (i & 1);
            if (t < s) A[n][i] = 0.f;
            if (t == s) A[n][i] = diagonal_of(keys, t);
            if (starts.any() && !starts.same(t, s)) A[n][i] = 0.f;
            if (s < starts.last()) dv[n][i] = 0.f;
        }
    load_b<row_of(VALUES)>(b, tiles.dy + at.warp * 16);
    repack(a, A);
    multiply_add(dv, a, b);

    pair dy_rows[4];
    b_as_a(dy_rows, b);
    if (starts.any()) keep_tokens(dy_rows, 0, starts.first(), at.column);
    const int odd = (at.row & 1) * 16;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {  // D <- keep D + (r 2^c')ᵀ dY
        load_b<kRow>(b, keys.r + n * 16);
#pragma unroll
        for (int z = 0; z < 2; z++) {
            const Powers powers = keys.powers[(n * 16 + z * 8 + at.row) / 2];
            b[2 * z] = multiply(b[2 * z], (powers.read[0] >> odd & 0xffffu) * 0x10001u);
            b[2 * z + 1] = multiply(b[2 * z + 1], (powers.read[1] >> odd & 0xffffu) * 0x10001u);
            const float2 kept = *(const float2 *)&keys.keep[n * 16 + z * 8 + at.column];
            float *d = side.D[2 * n + z];
            d[0] = starts.any() ? 0.f : d[0] * kept.x;
            d[1] = starts.any() ? 0.f : d[1] * kept.y;
            d[2] = starts.any() ? 0.f : d[2] * kept.x;
            d[3] = starts.any() ? 0.f : d[3] * kept.y;
            mma(d, dy_rows, b + 2 * z);
        }
    }
}
