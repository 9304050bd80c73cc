// The steps of the chunked WKV7 backward pass; wkv7_backward.cu says how they follow on each other.
#include "wkv7_chunk.cuh"

#ifndef BUFFERS  // chunks of inputs in shared memory: 2 loads the next one while this one is used
#define BUFFERS 2
#endif
static_assert(CHECKPOINT_CHUNKS == 1 || (BUFFERS == 2 && !CENTRED && !RESETS), "not made for it");

constexpr int UNROLLED = N > 64 ? 2 : BLOCKS;  // all at once, loads take registers that d needs
typedef element Raw[INPUTS][L * ROW];

struct Shared {
    Raw raw[BUFFERS];
    element a_bar[L * ROW], r_bar[L * ROW], k_hat[L * ROW], b_hat[L * ROW];
    float growth[(L + 1) * GROWTH_ROW];           // e^(c' - m) of each token, and of the one behind
    element entering[CHECKPOINT_CHUNKS][N * N];   // S̄, in tiles of 8 x 8
    element leaving[N * N];                       // D̃, likewise
    element u[N * SMALL], dz[N * SMALL];          // Uᵀ, dZᵀ
    element matrices[4][L * SMALL];               // A, then dA
    float enter[N], leave[N];                     // e^m, e^(c_L - m)
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// The kernel's parameters; `offset` leads to a sequence and head.
struct Pointers {
    const element *r, *log_w, *k, *v, *a, *b, *dy;
    const uint8 *resets;
};

// Start copying a chunk's inputs; without r and dy where only the state is to be computed on.
DEVICE void load(Raw &to, uint8 &starts, const Pointers &from, long long offset, int chunk,
                 int tokens, int stride, bool all) {
    if (chunk >= 0) {
        const int lane = lane_id(), row = lane & 15, column = warp_id() * 16 + (lane >> 4) * 8;
        const int token = chunk * L + row, bytes = token < tokens ? 16 : 0;
        const long long at = offset + (long long)(bytes ? token : 0) * stride + column;
        const int place = row * ROW + column;
        copy_async(&to[LOG_W][place], from.log_w + at, bytes);
        copy_async(&to[K][place], from.k + at, bytes);
        copy_async(&to[V][place], from.v + at, bytes);
        copy_async(&to[A][place], from.a + at, bytes);
        copy_async(&to[B][place], from.b + at, bytes);
        if (all) {
            copy_async(&to[R][place], from.r + at, bytes);
            copy_async(&to[DY][place], from.dy + at, bytes);
        }
#if RESETS
        const int flagged = chunk * L + (lane & 15);
        starts = flagged < tokens ? from.resets[(long long)blockIdx.y * tokens + flagged] : 0;
#endif
    }
    copy_async_commit();
}

// Start copying S̄ of a chunk, this warp's value rows.
DEVICE void load_state(element *to, const element *checkpoints, long long number) {
    const int first = warp_id() * 16 * N + lane_id() * 8;
    const element *from = checkpoints + number * N * N;
#pragma unroll
    for (int i = 0; i < N / 16; i++) copy_async(&to[first + i * 256], from + first + i * 256, 16);
}

// S̄ of a document's start, this warp's value rows; null: zero.
DEVICE void fill_state(element *to, const float *start, const float *enter) {
#pragma unroll 1
    for (int block = 0; block < BLOCKS; block++) {
        float s[2][4];
        pair rows[4];
        load_rows<N, 2>(s, start ? start + block * 16 : nullptr);
        if (CENTRED) scale_columns<2>(s, enter + block * 16);
        repack(rows, s);
        store_a_tiled<N>(to, warp_id() * 16, 2 * block, rows);
    }
}

// Scale a segment's inputs; ALL: what the gradients need, not only what the state does.
template <bool ALL>
DEVICE void scale_inputs(Shared &shared, const Raw &raw, Segment segment) {
    const int place = lane_token() * ROW + lane_channel();
    scale_operands<ALL, ALL>(shared, segment, [&](int input, int which) {
        return *(const uint2 *)&raw[input][place + which * ROW];
    });
}

// By value rows: Uᵀ and dZᵀ into shared memory, dV to `dv`, and d becomes D' e^-m.
// grad_rows are the left operands of D̃.
DEVICE void by_value_rows(Shared &shared, const Raw &raw, const element *entering, float (*d)[4],
                          const pair grad_rows[][4], element *dv, int stride, Segment segment) {
    const int first_row = warp_id() * 16;
    pair a[4], b[4], dy[4], dz[4];
    float sum[2][4];
    {
        pair values[4];
        load_a_transposed<ROW>(values, &raw[V][first_row]);
        clear<2>(sum);  // Uᵀ = S̄ āᵀ + Vᵀ A_akᵀ, times (I - A_ab)⁻ᵀ
#pragma unroll UNROLLED
        for (int block = 0; block < BLOCKS; block++) {
            load_a_tiled<N>(a, entering, first_row, block * 2);
            load_b_transposed<ROW>(b, shared.a_bar + block * 16);
            multiply_add(sum, a, b);
        }
        read_to_replace(sum, shared.matrices, values);
        store_accumulators<SMALL>(shared.u + first_row * SMALL, sum);
    }
    load_a_transposed<ROW>(dy, &raw[DY][first_row]);
    clear<2>(sum);  // dZᵀ = (D̃ b̂ᵀ + dYᵀ A_rb) (I - A_ab)⁻¹
    read_state(sum, grad_rows, shared.b_hat);
    load_b<SMALL>(b, shared.matrices[A_RB]);
    multiply_add(sum, dy, b);
    repack(a, sum);
    load_b<SMALL>(b, shared.matrices[A_AB]);
    multiply_add(sum, a, b);
    store_accumulators<SMALL>(shared.dz + first_row * SMALL, sum);
    repack(dz, sum);

    clear<2>(sum);  // dVᵀ
    read_state(sum, grad_rows, shared.k_hat);
    load_b<SMALL>(b, shared.matrices[A_RK]);
    multiply_add(sum, dy, b);
    load_b<SMALL>(b, shared.matrices[A_AK]);
    multiply_add(sum, dz, b);
    store_columns_of_block(dv + first_row, stride, segment.first, segment.last, sum);
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        load_b<ROW>(b, shared.r_bar + block * 16);
        multiply_add(d + 2 * block, dy, b);
        load_b<ROW>(b, shared.a_bar + block * 16);
        multiply_add(d + 2 * block, dz, b);
    }
}

// The gradient of this warp's matrix, of the first four, takes the matrix's place.
DEVICE void make_matrix_gradient(Shared &shared, const Raw &raw) {
    const int which = warp_id();
    float sum[2][4];
    clear<2>(sum);
#pragma unroll UNROLLED
    for (int block = 0; block < BLOCKS; block++) {
        pair a[4], b[4];
        if (which < A_RK)
            load_a_transposed<SMALL>(a, shared.dz + block * 16 * SMALL);
        else
            load_a<ROW>(a, &raw[DY][block * 16]);
        if (which & 1)
            load_b<SMALL>(b, shared.u + block * 16 * SMALL);
        else
            load_b_transposed<ROW>(b, &raw[V][block * 16]);
        multiply_add(sum, a, b);
    }
    keep_lower(sum, which < A_RK);
    store_accumulators<SMALL>(shared.matrices[which], sum);
}

// What a warp sums for its 16 channels of the chunk, tokens by channels.
struct Columns {
    float r[2][4], a[2][4], k[2][4], b[2][4];  // gradients but for their exponents
    float state_part[2][4];                    // k V D̃ + b U D̃
    float through[2][2];                       // Σ_value S̄ D̃ of the lane's channels
};

// By key columns, the products with the states: dY S̄, dZ S̄, V D̃, U D̃ and what follows from them.
DEVICE void state_products(Columns &c, const Shared &shared, const Raw &raw,
                           const element *entering) {
    const int warp = warp_id(), column = fragment_column();
    float square[2][4];  // S̄ᵀ D̃, whose diagonal is wanted
    clear<2>(c.r), clear<2>(c.a), clear<2>(c.k), clear<2>(c.b), clear<2>(square);
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        pair rows[4], state[4], grad[4];
        load_b_tiled<N>(state, entering, block * 16, warp * 2);
        load_b_tiled<N>(grad, shared.leaving, block * 16, warp * 2);
        load_a<ROW>(rows, &raw[DY][block * 16]);
        multiply_add(c.r, rows, state);
        load_a_transposed<SMALL>(rows, shared.dz + block * 16 * SMALL);
        multiply_add(c.a, rows, state);
        load_a<ROW>(rows, &raw[V][block * 16]);
        multiply_add(c.k, rows, grad);
        load_a_transposed<SMALL>(rows, shared.u + block * 16 * SMALL);
        multiply_add(c.b, rows, grad);
        const pair state_transposed[4] = {state[0], state[2], state[1], state[3]};
        multiply_add(square, state_transposed, grad);
    }
    const int diagonal = 9 * (lane_id() & 3);  // the lane that holds it, for columns 0 and 8
    c.through[0][0] = __shfl_sync(ALL_LANES, square[0][0], diagonal);
    c.through[0][1] = __shfl_sync(ALL_LANES, square[0][1], diagonal + 4);
    c.through[1][0] = __shfl_sync(ALL_LANES, square[1][2], diagonal);
    c.through[1][1] = __shfl_sync(ALL_LANES, square[1][3], diagonal + 4);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            const int at = (fragment_row() + lower * 8) * ROW + warp * 16 + half * 8 + column;
            const pair k = *(const pair *)&shared.k_hat[at], b = *(const pair *)&shared.b_hat[at];
            const int i = 2 * lower;
            c.state_part[half][i] = low(k) * c.k[half][i] + low(b) * c.b[half][i];
            c.state_part[half][i + 1] = high(k) * c.k[half][i + 1] + high(b) * c.b[half][i + 1];
        }
}

// By key columns, the products with the gradients of the four matrices.
DEVICE void matrix_products(Columns &c, const Shared &shared) {
    const int column = warp_id() * 16;
    pair a[4], first[4], second[4];
    load_b<ROW>(first, shared.k_hat + column);
    load_b<ROW>(second, shared.b_hat + column);
    load_a<SMALL>(a, shared.matrices[A_RK]);
    multiply_add(c.r, a, first);
    load_a<SMALL>(a, shared.matrices[A_RB]);
    multiply_add(c.r, a, second);
    load_a<SMALL>(a, shared.matrices[A_AK]);
    multiply_add(c.a, a, first);
    load_a<SMALL>(a, shared.matrices[A_AB]);
    multiply_add(c.a, a, second);
    load_b<ROW>(first, shared.r_bar + column);
    load_b<ROW>(second, shared.a_bar + column);
    load_a_transposed<SMALL>(a, shared.matrices[A_RK]);
    multiply_add(c.k, a, first);
    load_a_transposed<SMALL>(a, shared.matrices[A_AK]);
    multiply_add(c.k, a, second);
    load_a_transposed<SMALL>(a, shared.matrices[A_RB]);
    multiply_add(c.b, a, first);
    load_a_transposed<SMALL>(a, shared.matrices[A_AB]);
    multiply_add(c.b, a, second);
}

// d += m x for a 16 x 16 matrix m of zeros and ones and x [16 x 8], x in two parts: not rounded.
DEVICE void add_sums(float d[4], const pair m[4], const float x[4]) {
    const pair upper = pack(x[0], x[1]), lower = pack(x[2], x[3]);
    pair b[2] = {transpose_matrix(upper), transpose_matrix(lower)};
    mma(d, m, b);
    b[0] = transpose_matrix(pack(x[0] - low(upper), x[1] - high(upper)));
    b[1] = transpose_matrix(pack(x[2] - low(lower), x[3] - high(lower)));
    mma(d, m, b);
}

// Multiply the gradients by their exponents, and sum up dlog_w.
DEVICE void finish(Columns &c, float dlog_w[2][4], const Shared &shared) {
    const int row = fragment_row(), column = fragment_column();
    const pair one = pack(1.f, 0.f), ones = pack(1.f, 1.f);
    const pair corner = (column >= row ? one : 0) | (column + 1 >= row ? one << 16 : 0);
    const pair from_here[4] = {corner, 0, ones, corner};                 // s >= t
    const pair before[4] = {corner ^ ones, ones, 0, corner ^ ones};      // s < t
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float within[4];  // r dr + a da - k dk - b db, but for the states that leave
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            const int token = row + lower * 8, channel = warp_id() * 16 + half * 8 + column;
            const int at = token * ROW + channel;
            const float2 behind = *(const float2 *)&shared.growth[(token + 1) * GROWTH_ROW + channel];
            const float2 ahead = *(const float2 *)&shared.growth[token * GROWTH_ROW + channel];
            const pair r = *(const pair *)&shared.r_bar[at], k = *(const pair *)&shared.k_hat[at];
            const pair a = *(const pair *)&shared.a_bar[at], b = *(const pair *)&shared.b_hat[at];
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const int i = 2 * lower + odd;
                const float read = odd ? behind.y : behind.x, written = reciprocal(read);
                const float a_da = (odd ? high(a) : low(a)) * c.a[half][i];
                within[i] = (odd ? high(r) : low(r)) * c.r[half][i] + a_da -
                            ((odd ? high(k) : low(k)) * c.k[half][i] +
                             (odd ? high(b) : low(b)) * c.b[half][i] - c.state_part[half][i]);
                dlog_w[half][i] = c.through[half][odd] - a_da;
                c.r[half][i] *= read;
                c.a[half][i] *= odd ? ahead.y : ahead.x;
                c.k[half][i] *= written;
                c.b[half][i] *= written;
            }
        }
        add_sums(dlog_w[half], from_here, within);
        add_sums(dlog_w[half], before, c.state_part[half]);
    }
}
