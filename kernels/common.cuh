// Matrix fragments in the registers of a warp, and their way to and from memory.
//
// Lane l holds, with row = l / 4 and column = 2 * (l % 4), of
//   an accumulator d [16 x 8]   d[0], d[1] at (row, column), (row, column + 1); d[2], d[3] at row + 8
//   a left operand a [16 x 16]  a[0] at (row, column), a[1] at row + 8, a[2] at column + 8, a[3] both
//   a right operand b [16 x 8]  b[0] at (column and column + 1, row), b[1] at column + 8
// Two accumulators side by side make a 16 x 16 matrix, and repack into a left operand as they lie.
#include "device.cuh"

#ifndef FEW_REGISTERS  // better to compute addresses again than to keep them
#define FEW_REGISTERS 0
#endif

DEVICE int lane_id() {
    const int lane = threadIdx.x & 31;
    return FEW_REGISTERS ? forget(lane) : lane;
}
DEVICE int warp_id() { return threadIdx.x >> 5; }
DEVICE int fragment_row() { return lane_id() >> 2; }
DEVICE int fragment_column() { return (lane_id() & 3) * 2; }

// ---- tiles in shared memory: rows of STRIDE elements, a multiple of 8; their first 16 x 16 part

// STRIDE / 8 odd keeps eight consecutive rows in different banks.

// a = tile
template <int STRIDE>
DEVICE void load_a(pair a[4], const element *tile) {
    const int lane = lane_id();
    load_matrices(a, tile + ((lane & 7) + ((lane >> 3) & 1) * 8) * STRIDE + (lane >> 4) * 8);
}
// a = tileᵀ
template <int STRIDE>
DEVICE void load_a_transposed(pair a[4], const element *tile) {
    const int lane = lane_id();
    load_matrices_transposed(a,
                             tile + ((lane & 7) + (lane >> 4) * 8) * STRIDE + ((lane >> 3) & 1) * 8);
}
// b = tile; b[0], b[1] are its first eight columns, b[2], b[3] the others
template <int STRIDE>
DEVICE void load_b(pair b[4], const element *tile) {
    const int lane = lane_id();
    load_matrices_transposed(b,
                             tile + ((lane & 7) + ((lane >> 3) & 1) * 8) * STRIDE + (lane >> 4) * 8);
}
// b = tileᵀ
template <int STRIDE>
DEVICE void load_b_transposed(pair b[4], const element *tile) {
    const int lane = lane_id();
    load_matrices(b, tile + ((lane & 7) + (lane >> 4) * 8) * STRIDE + ((lane >> 3) & 1) * 8);
}
// tile = d
template <int STRIDE>
DEVICE void store_accumulators(element *tile, const float d[2][4]) {
    const int row = fragment_row(), column = fragment_column();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        *(pair *)&tile[row * STRIDE + half * 8 + column] = pack(d[half][0], d[half][1]);
        *(pair *)&tile[(row + 8) * STRIDE + half * 8 + column] = pack(d[half][2], d[half][3]);
    }
}

// ---- matrices [.. x SIZE] as tiles of 8 x 8 elements, a tile 128 bytes in a row: neither ldmatrix nor
// a fragment's stores meet a bank twice, and in global memory a warp's store fills whole sectors

// Where row `row` of tile `piece` (columns 8 * piece ..) lies.
template <int SIZE>
DEVICE int tiled(int row, int piece) {
    return ((row >> 3) * (SIZE / 8) + piece) * 64 + (row & 7) * 8;
}
// a = the 16 x 16 part that begins at (row, 8 * piece)
template <int SIZE>
DEVICE void load_a_tiled(pair a[4], const element *matrix, int row, int piece) {
    const int lane = lane_id();
    load_matrices(a, matrix + tiled<SIZE>(row + (lane & 7) + ((lane >> 3) & 1) * 8,
                                          piece + (lane >> 4)));
}
// b = that part
template <int SIZE>
DEVICE void load_b_tiled(pair b[4], const element *matrix, int row, int piece) {
    const int lane = lane_id();
    load_matrices_transposed(b, matrix + tiled<SIZE>(row + (lane & 7) + ((lane >> 3) & 1) * 8,
                                                     piece + (lane >> 4)));
}
// the part that begins at (row, 8 * piece) = a
template <int SIZE>
DEVICE void store_a_tiled(element *matrix, int row, int piece, const pair a[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = tiled<SIZE>(row + fragment_row() + (i & 1) * 8, piece + (i >> 1));
        *(pair *)&matrix[at + fragment_column()] = a[i];
    }
}

// ---- arithmetic on fragments

template <int COUNT>
DEVICE void clear(float (*d)[4]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0.f;
}
// d [16 x 16] += a b
DEVICE void multiply_add(float d[2][4], const pair a[4], const pair b[4]) {
    mma(d[0], a, b);
    mma(d[1], a, b + 2);
}
// a = d
DEVICE void repack(pair a[4], const float d[2][4]) {
    a[0] = pack(d[0][0], d[0][1]);
    a[1] = pack(d[0][2], d[0][3]);
    a[2] = pack(d[1][0], d[1][1]);
    a[3] = pack(d[1][2], d[1][3]);
}
// Multiply each column of COUNT accumulators side by side by its factor.
template <int COUNT>
DEVICE void scale_columns(float (*d)[4], const float *factors) {
#pragma unroll
    for (int tile = 0; tile < COUNT; tile++) {
        const float2 factor = *(const float2 *)&factors[tile * 8 + fragment_column()];
        d[tile][0] *= factor.x;
        d[tile][1] *= factor.y;
        d[tile][2] *= factor.x;
        d[tile][3] *= factor.y;
    }
}

// ---- fragments and global memory

// Load 16 rows of an fp32 matrix [.. x SIZE] into COUNT accumulators side by side; null: zero.
template <int SIZE, int COUNT = SIZE / 8>
DEVICE void load_rows(float (*d)[4], const float *rows) {
#pragma unroll
    for (int tile = 0; tile < COUNT; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = (fragment_row() + half * 8) * SIZE + tile * 8 + fragment_column();
            const float2 x = rows ? *(const float2 *)&rows[at] : make_float2(0.f, 0.f);
            d[tile][2 * half] = x.x;
            d[tile][2 * half + 1] = x.y;
        }
}
template <int SIZE, int COUNT = SIZE / 8>
DEVICE void store_rows(float *rows, const float (*d)[4]) {
#pragma unroll
    for (int tile = 0; tile < COUNT; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = (fragment_row() + half * 8) * SIZE + tile * 8 + fragment_column();
            *(float2 *)&rows[at] = make_float2(d[tile][2 * half], d[tile][2 * half + 1]);
        }
}
// Add to them in memory; a tile at a time, to hold few values.
template <int SIZE>
DEVICE void add_to_rows(float *rows, const float (*d)[4]) {
#pragma unroll
    for (int tile = 0; tile < SIZE / 8; tile++) {
        float sum[1][4];
        load_rows<SIZE, 1>(sum, rows + tile * 8);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[0][i] += d[tile][i];
        store_rows<SIZE, 1>(rows + tile * 8, sum);
        keep_order();
    }
}
// Store rows first .. last - 1 of a 16 x 16 matrix, 16 bytes a lane. A lane gives what it holds of
// it: top and bottom rows (row, row + 8), left and right columns (column, column + 8). Two exchanges
// within groups of four lanes turn that into whole pieces of 8 elements.
DEVICE void store_block(element *to, int stride, int first, int last, pair top_left,
                        pair bottom_left, pair top_right, pair bottom_right) {
    const int quad = lane_id() & 3;
    const bool odd = quad & 1, upper = quad & 2;
    pair give = odd ? top_left : bottom_left;
    pair take = __shfl_xor_sync(ALL_LANES, give, 1);
    pair left0 = odd ? take : top_left, left1 = odd ? bottom_left : take;
    give = odd ? top_right : bottom_right;
    take = __shfl_xor_sync(ALL_LANES, give, 1);
    pair right0 = odd ? take : top_right, right1 = odd ? bottom_right : take;
    pair take0 = __shfl_xor_sync(ALL_LANES, upper ? left0 : right0, 2);
    pair take1 = __shfl_xor_sync(ALL_LANES, upper ? left1 : right1, 2);
    const uint4 piece = upper ? make_uint4(take0, take1, right0, right1)
                              : make_uint4(left0, left1, take0, take1);
    const int row = fragment_row() + (quad & 1) * 8;
    if (row >= first && row < last)
        *(uint4 *)(to + (long long)row * stride + (quad >> 1) * 8) = piece;
}
// Store d, or dᵀ.
DEVICE void store_rows_of_block(element *to, int stride, int first, int last, const float d[2][4]) {
    store_block(to, stride, first, last, pack(d[0][0], d[0][1]), pack(d[0][2], d[0][3]),
                pack(d[1][0], d[1][1]), pack(d[1][2], d[1][3]));
}
DEVICE void store_columns_of_block(element *to, int stride, int first, int last,
                                   const float d[2][4]) {
    store_block(to, stride, first, last, transpose_matrix(pack(d[0][0], d[0][1])),
                transpose_matrix(pack(d[1][0], d[1][1])),
                transpose_matrix(pack(d[0][2], d[0][3])),
                transpose_matrix(pack(d[1][2], d[1][3])));
}
