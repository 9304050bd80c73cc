// What the chunked WKV7 kernels share: one chunk of L = 16 tokens of one head.
//
// With c_t the sum of log w over the chunk up to and with token t, c'_t without it, and a centre m
// (0 for bf16; for fp16, whose range is small, c at the chunk's middle), the kernels work on
//     ā = a e^(c' - m)   r̄ = r e^(c - m)   k̂ = k e^(m - c)   b̂ = b e^(m - c)
//     A_ak, A_ab = strictly lower part of ā k̂ᵀ, ā b̂ᵀ;   A_rk, A_rb = lower part of r̄ k̂ᵀ, r̄ b̂ᵀ
// so that, with S̄ = S e^m, S [value, key] the state that enters the chunk,
//     U = (I - A_ab)⁻¹ (ā S̄ᵀ + A_ak V)       what each token reads from the state to replace
//     Y = r̄ S̄ᵀ + A_rk V + A_rb U
//     S' = (S̄ + Vᵀ k̂ + Uᵀ b̂) e^(c_L - m)     the state that leaves it.
// log w >= -e^-½ in RWKV-7, so that no exponent is beyond 9.8.
//
// A document's start inside a chunk ends a segment. Each segment is worked on as a chunk of its own,
// with zeros for r, k, a, b and log w outside of it: those tokens then change nothing. The end of
// the sequence is the same thing.
#ifndef HEAD_SIZE
#define HEAD_SIZE 64
#endif
#ifndef CHECKPOINT_CHUNKS  // chunks between two checkpoints of the state
#define CHECKPOINT_CHUNKS 1
#endif
#ifndef RESETS  // whether documents may start inside the sequence
#define RESETS 0
#endif
#define FEW_REGISTERS (RESETS || HEAD_SIZE > 64)  // they would be spilled there
#include "common.cuh"

constexpr int L = 16;                         // tokens in a chunk
constexpr int N = HEAD_SIZE;
constexpr int WARPS = N / 16;                 // each owns 16 value rows of the state, or 16 channels
constexpr int BLOCKS = N / 16;                // 16 x 16 blocks along a head
constexpr int ROW = N + 8;                    // stride of a tile [L x N]
constexpr int SMALL = L + 8;                  // stride of a tile [.. x L]
constexpr int EXACT = L + 8;                  // stride of an fp32 tile [L x L]
constexpr int GROWTH_ROW = N + 8;             // stride of an fp32 tile [L + 1 x N]
constexpr float LOG2_E = 1.4426950408889634f;
#ifdef ELEMENT_FP16
constexpr bool CENTRED = true;
#else
constexpr bool CENTRED = false;
#endif
#if CHECKPOINT_CHUNKS == 1
typedef element checkpoint;  // S̄ as the backward pass needs it: a tensor-core operand
#else
typedef float checkpoint;    // S, to compute on from
#endif

enum { R, LOG_W, K, V, A, B, FORWARD_INPUTS, DY = FORWARD_INPUTS, INPUTS };
enum { A_AK, A_AB, A_RK, A_RB };  // the four matrices; warp i makes the i-th

// The tokens first .. last - 1 of a chunk: those of one document.
struct Segment {
    int first, last;
    DEVICE bool holds(int token) const { return token >= first && token < last; }
};

// Which tokens of a chunk start a document, one bit each; `flag` is that of token lane % 16.
DEVICE unsigned document_starts(uint8 flag) { return __ballot_sync(ALL_LANES, flag) & 0xffffu; }
// The first token after `token` that starts a document, or the chunk's end.
DEVICE int next_start(unsigned starts, int token) {
    const unsigned later = starts & (0xfffeu << token);
    return later ? __ffs(later) - 1 : L;
}
// The last token before `token` that starts a document, or 0.
DEVICE int previous_start(unsigned starts, int token) {
    const unsigned earlier = starts & ((1u << token) - 1);
    return earlier ? 31 - __clz(earlier) : 0;
}

// Where a lane's part of a chunk lies: four channels of two neighbouring tokens.
DEVICE int lane_channel() { return warp_id() * 16 + (lane_id() & 3) * 4; }
DEVICE int lane_token() { return lane_id() >> 2 << 1; }

// Scale a segment's operands into the tiles, each warp its own 16 channels. read(input, which)
// gives this lane's four channels of its first (which 0) or second token. READS: r̄, too. GROWTH:
// e^(c' - m) of each token and of the one behind the last, to growth.
template <bool READS, bool GROWTH, typename Tiles, typename Read>
DEVICE void scale_operands(Tiles &tiles, Segment segment, Read read) {
    const int lane = lane_id(), channel = lane_channel(), token = lane_token();
    const bool keep[2] = {segment.holds(token), segment.holds(token + 1)};
    const uint2 log_w[2] = {read(LOG_W, 0), read(LOG_W, 1)};
    float before[4], between[4], behind[4], centres[4];  // e^(c - m) around the two tokens
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const pair x = i < 2 ? log_w[0].x : log_w[0].y, y = i < 2 ? log_w[1].x : log_w[1].y;
        const float one = keep[0] ? ((i & 1) ? high(x) : low(x)) * LOG2_E : 0.f;
        const float two = keep[1] ? ((i & 1) ? high(y) : low(y)) * LOG2_E : 0.f;
        float upto = one + two;  // over the tokens up to these
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
            const float other = __shfl_sync(ALL_LANES, upto, lane - distance);
            if (lane >= distance) upto += other;
        }
        const float centre = CENTRED ? __shfl_sync(ALL_LANES, upto, 12 + (lane & 3)) : 0.f;
        const float start = upto - (one + two) - centre;
        before[i] = exp2_fast(start);
        between[i] = exp2_fast(start + one);
        behind[i] = exp2_fast(upto - centre);
        centres[i] = centre;
    }
    if (token == L - 2)
        *(float4 *)&tiles.leave[channel] = make_float4(behind[0], behind[1], behind[2], behind[3]);
    if (CENTRED && token == 0)
        *(float4 *)&tiles.enter[channel] =
            make_float4(exp2_fast(centres[0]), exp2_fast(centres[1]), exp2_fast(centres[2]),
                        exp2_fast(centres[3]));
    if constexpr (GROWTH) {
        float *growth = &tiles.growth[token * GROWTH_ROW + channel];
        if (token == 0) *(float4 *)growth = make_float4(before[0], before[1], before[2], before[3]);
        *(float4 *)&growth[GROWTH_ROW] = make_float4(between[0], between[1], between[2], between[3]);
        *(float4 *)&growth[2 * GROWTH_ROW] = make_float4(behind[0], behind[1], behind[2], behind[3]);
    }
    auto scale = [&](element *to, int input, const float *first, const float *second) {
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const float *factor = which ? second : first;
            const uint2 x = read(input, which);
            uint2 scaled = make_uint2(pack(low(x.x) * factor[0], high(x.x) * factor[1]),
                                      pack(low(x.y) * factor[2], high(x.y) * factor[3]));
            if (!keep[which]) scaled = make_uint2(0, 0);
            *(uint2 *)&to[(token + which) * ROW + channel] = scaled;
        }
    };
    scale(tiles.a_bar, A, before, between);
    if constexpr (READS) scale(tiles.r_bar, R, between, behind);
#pragma unroll
    for (int i = 0; i < 4; i++) between[i] = reciprocal(between[i]), behind[i] = reciprocal(behind[i]);
    scale(tiles.k_hat, K, between, behind);
    scale(tiles.b_hat, B, between, behind);
}

// Keep the lower part of a 16 x 16 matrix, without the diagonal if `strictly`.
DEVICE void keep_lower(float d[2][4], bool strictly) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = fragment_row() + (i >> 1) * 8;
            const int column = half * 8 + fragment_column() + (i & 1);
            if (row < column + strictly) d[half][i] = 0.f;
        }
}

// to = (I - A)⁻¹ - I for a strictly lower A [16 x 16], by one warp. Substitution in fp32, a column a
// lane: a Neumann product would overflow where keys repeat. The identity is left to the callers, so
// that it is not rounded.
DEVICE void invert(element *to, const float lower[2][4], float *scratch) {
    const int lane = lane_id();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float *to = &scratch[fragment_row() * EXACT + half * 8 + fragment_column()];
        *(float2 *)to = make_float2(lower[half][0], lower[half][1]);
        *(float2 *)&to[8 * EXACT] = make_float2(lower[half][2], lower[half][3]);
    }
    __syncwarp();
    if (lane < L) {
        float x[L];
#pragma unroll
        for (int row = 0; row < L; row++) {
            float sum = row == lane ? 1.f : 0.f;
#pragma unroll
            for (int column = 0; column < row; column += 4) {
                const float4 part = *(const float4 *)&scratch[row * EXACT + column];
                sum += part.x * x[column];
                if (column + 1 < row) sum += part.y * x[column + 1];
                if (column + 2 < row) sum += part.z * x[column + 2];
                if (column + 3 < row) sum += part.w * x[column + 3];
            }
            x[row] = sum;
        }
#pragma unroll
        for (int row = 0; row < L; row++)
            to[row * SMALL + lane] = round_to_element(row == lane ? 0.f : x[row]);
    }
}

// The matrix that belongs to this warp, of the first four; (I - A_ab)⁻¹ - I takes A_ab's place.
template <typename Tiles>
DEVICE void make_matrix(Tiles &tiles, element (*matrices)[L * SMALL], float *scratch) {
    const int which = warp_id();
    const element *rows = which < A_RK ? tiles.a_bar : tiles.r_bar;
    const element *columns = (which & 1) ? tiles.b_hat : tiles.k_hat;
    float d[2][4];
    clear<2>(d);
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        pair a[4], b[4];
        load_a<ROW>(a, rows + block * 16);
        load_b_transposed<ROW>(b, columns + block * 16);
        multiply_add(d, a, b);
    }
    keep_lower(d, which < A_RK);
    if (which == A_AB)
        invert(matrices[A_AB], d, scratch);
    else
        store_accumulators<SMALL>(matrices[which], d);
}

// sum += S̄ xᵀ for this warp's value rows; state = S̄ as left operands, x a tile of L tokens.
DEVICE void read_state(float sum[2][4], const pair state[][4], const element *x) {
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        pair b[4];
        load_b_transposed<ROW>(b, x + block * 16);
        multiply_add(sum, state[block], b);
    }
}

// Uᵀ for this warp's value rows, of which u holds S̄ āᵀ; values = Vᵀ as a left operand of the rows.
DEVICE void read_to_replace(float u[2][4], element (*matrices)[L * SMALL], const pair values[4]) {
    pair a[4], b[4];
    load_b_transposed<SMALL>(b, matrices[A_AK]);
    multiply_add(u, values, b);
    repack(a, u);
    load_b_transposed<SMALL>(b, matrices[A_AB]);
    multiply_add(u, a, b);
}

// state += Vᵀ k̂ + Uᵀ b̂ for this warp's value rows
template <typename Tiles>
DEVICE void write_to_state(float (*state)[4], const Tiles &tiles, const pair values[4],
                           const pair u[4]) {
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        pair b[4];
        load_b<ROW>(b, tiles.k_hat + block * 16);
        multiply_add(state + 2 * block, values, b);
        load_b<ROW>(b, tiles.b_hat + block * 16);
        multiply_add(state + 2 * block, u, b);
    }
}
