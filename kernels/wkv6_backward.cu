// WKV6 and WKV5 backward in chunks; wkv6_chunk.cuh has the formulas and the scaling.
//
// With D the gradient of the state that leaves the chunk, and dA = dY Vᵀ below the diagonal:
//
//     dV = Aᵀ dY + (k 2^(total - c)) D
//     dr = 2^(c' - m) (dA (k 2^(m - c)) + 2^m dY Sᵀ) + u k e,         e_t = dy_t · v_t
//     dk = 2^(m - c) dAᵀ (r 2^(c' - m)) + 2^(total - c) V Dᵀ + u r e,    du = Σ_t r k e
//     D <- diag(2^total) D + (r 2^c')ᵀ dY
//
// and the decay's gradient by what each pair of tokens and each state pass over. With x = r dr,
// y = k dk inside the chunk, z = k dk through the state, and kept = 2^total Σ_j D S:
//
//     dlog_w_t = Σ_{s > t} x_s - Σ_{s >= t} y_s + Σ_{s < t} z_s + kept.
//
// The pairs on one side of t cancel, and do so exactly, because both sums use the same rounded
// operands. Beyond kFloor the decay is not what was asked for, but its gradient, 2^lw Σ D S, is.
//
// Both D by value rows (for dV) and D by key rows (for all else) are kept, in fp32 accumulators:
// twice the work on D, but no exchange between warps. HEAD_SIZE 128 gives the two to different
// blocks ("sides"), and so does SPLIT_SIDES, for few heads. Four warps, a panel of 64 channels.
#include "wkv6_chunk.cuh"

#ifndef SPLIT_SIDES
#define SPLIT_SIDES (HEAD_SIZE != 64)
#endif

constexpr int kExchangeRow = 18;

// The document starts of chunk i of a segment.
DEVICE unsigned bits_of(const unsigned bits[2], int i) {
    return (CHECKPOINT_CHUNKS > 2 && i >= 2 ? bits[1] : bits[0]) >> ((i & 1) * 16) & 0xffffu;
}
DEVICE float rounded(float x) { return widen(round_to_element(x)); }
// Sums over the four groups of lanes.
DEVICE float2 sum_groups(const float x[2]) {
    float sum[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] = x[h] + __shfl_xor_sync(ALL_LANES, x[h], 8);
        sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 16);
    }
    return make_float2(sum[0], sum[1]);
}

template <int KEYS, int VALUES, bool KEY_SIDE>
struct SideShared;

template <int KEYS, int VALUES>
struct BackwardTiles {
    KeyTiles<KEYS> keys;
    element dy[kTokens * row_of(VALUES)];
};
// The value side needs neither v nor the states.
template <int KEYS, int VALUES>
struct SideShared<KEYS, VALUES, false> {
    BackwardTiles<KEYS, VALUES> tiles[CHECKPOINT_CHUNKS];
};
// What a warp hands from the layout of accumulators to that of loads: [token][its 16 channels].
struct Exchange {
    float dr[kTokens * kExchangeRow];        // from m to none is still to come
    float dk_inside[kTokens * kExchangeRow];
    float dk_through[kTokens * kExchangeRow];
    float e[kTokens];
    float kept[16];
};
template <int KEYS, int VALUES>
struct SideShared<KEYS, VALUES, true> {
    BackwardTiles<KEYS, VALUES> tiles[CHECKPOINT_CHUNKS];
    element v[CHECKPOINT_CHUNKS][kTokens * row_of(VALUES)];
    pair states[CHECKPOINT_CHUNKS][VALUES / 4][kThreads];  // S entering a chunk: b operands, a thread's own
    Exchange exchange[4];
};

#if SPLIT_SIDES
using KeySideShared = SideShared<kPanel, kHead, true>;
using ValueSideShared = SideShared<kHead, kPanel, false>;
static_assert(sizeof(ValueSideShared) <= sizeof(KeySideShared), "the launch asks for the larger");
#else
using KeySideShared = SideShared<kHead, kHead, true>;
#endif
static_assert(sizeof(KeySideShared) == SHARED_BYTES, "the launch must know it");

struct Outputs {
    pair *dr, *dk, *dlog_w;
    element *dv;
    float2 *du, *dchannel_log_w;  // of this batch row and head, at panel 0
};

// ---- the value side

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

// ---- the key side

struct KeySide {
    float D[kHead / 8][4];  // rows: the warp's keys; columns: values in the tiles' order
    float du[2], dw[2];     // sums over the tokens, of the channel pair that the thread loads
};

// The states that enter a segment's chunks, from the checkpoint [value, key] that enters the first.
template <int KEYS, int VALUES>
DEVICE void recompute_states(SideShared<KEYS, VALUES, true> &shared, const float *checkpoint,
                             const unsigned bits[2], int count, int panel, const Lane &at) {
    constexpr int kRow = row_of(KEYS);
    const int own = at.warp * 16 + at.row;
    float S[VALUES / 8][4];
#pragma unroll
    for (int n = 0; n < VALUES / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            S[n][e] = checkpoint[value_channel(n * 8 + at.column + (e & 1)) * kHead +
                                 panel * kPanel + own + (e >> 1) * 8];
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        const KeyTiles<KEYS> &keys = shared.tiles[i].keys;
        pair a[4], b[4];
#pragma unroll
        for (int n = 0; n < VALUES / 16; n++) {
            repack_transposed(b, S + 2 * n);
#pragma unroll
            for (int q = 0; q < 4; q++) shared.states[i][4 * n + q][threadIdx.x] = b[q];
        }
        if (i + 1 == count) break;
        const Starts starts{bits_of(bits, i)};
        load_a_transposed<kRow>(a, keys.write + at.warp * 16);
        if (starts.any()) keep_tokens(a, starts.last(), kTokens, at.column);
        const float keep = starts.any() ? 0.f : keys.keep[own];
        const float keep_next = starts.any() ? 0.f : keys.keep[own + 8];
#pragma unroll
        for (int n = 0; n < VALUES / 16; n++) {
            load_b<row_of(VALUES)>(b, shared.v[i] + n * 16);
#pragma unroll
            for (int z = 0; z < 2; z++) {
                float *s = S[2 * n + z];
                s[0] *= keep;
                s[1] *= keep;
                s[2] *= keep_next;
                s[3] *= keep_next;
                mma(s, a, b + 2 * z);
            }
        }
    }
}

// The products over values of a chunk, into `to`; then D before the chunk.
template <int KEYS, int VALUES>
DEVICE void key_side(KeySide &side, Exchange &to, SideShared<KEYS, VALUES, true> &shared, int i,
                     const Starts &starts, const Lane &at) {
    constexpr int kRow = row_of(KEYS), kValueRow = row_of(VALUES);
    const KeyTiles<KEYS> &keys = shared.tiles[i].keys;
    const element *dy = shared.tiles[i].dy, *v = shared.v[i];
    const int own = at.warp * 16 + at.row;
    float dr[2][4], dk[2][4], dA[2][4], kept = 0.f, kept_next = 0.f;
    pair a[4], b[4], state[4];
    clear<2>(dr);
    clear<2>(dk);
    clear<2>(dA);
#pragma unroll
    for (int n = 0; n < VALUES / 16; n++) {  // dr = dY Sᵀ, dA = dY Vᵀ, dk = V Dᵀ, kept = Σ D S
        const float *left = side.D[2 * n], *right = side.D[2 * n + 1];
#pragma unroll
        for (int q = 0; q < 4; q++) state[q] = shared.states[i][4 * n + q][threadIdx.x];
        kept += left[0] * low(state[0]) + left[1] * high(state[0]) + right[0] * low(state[1]) +
                right[1] * high(state[1]);
        kept_next += left[2] * low(state[2]) + left[3] * high(state[2]) +
                     right[2] * low(state[3]) + right[3] * high(state[3]);
        load_a<kValueRow>(a, dy + n * 16);
        multiply_add(dr, a, state);
        load_b_transposed<kValueRow>(b, v + n * 16);
        multiply_add(dA, a, b);
        load_a<kValueRow>(a, v + n * 16);
        repack_transposed(b, side.D + 2 * n);
        multiply_add(dk, a, b);
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
        kept += __shfl_xor_sync(ALL_LANES, kept, distance);
        kept_next += __shfl_xor_sync(ALL_LANES, kept_next, distance);
    }
    if (at.column == 0) {
        to.kept[at.row] = starts.any() ? 0.f : kept * keys.keep[own];
        to.kept[at.row + 8] = starts.any() ? 0.f : kept_next * keys.keep[own + 8];
    }
    if (at.row >> 1 == at.column >> 1) {  // the diagonal of dA
        to.e[at.row] = at.row & 1 ? dA[0][1] : dA[0][0];
        to.e[at.row + 8] = at.row & 1 ? dA[1][3] : dA[1][2];
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int t = at.row + (e >> 1) * 8, s = n * 8 + at.column + (e & 1);
            if (t <= s || (starts.any() && !starts.same(t, s))) dA[n][e] = 0.f;
            if (t >= starts.first()) dr[n][e] = 0.f;
            if (t < starts.last()) dk[n][e] = 0.f;
            to.dk_through[t * kExchangeRow + s] = dk[n][e];
        }

    // Inside the chunk, 8 tokens of the sum at a time: between them, change the centre of the rows.
    pair r[4];
    clear<2>(dk);
    repack(a, dA);
    load_b<kRow>(b, keys.k + at.warp * 16);
    load_b<kRow>(r, keys.r + at.warp * 16);
    const pair early[2] = {transpose_matrix(a[0]), 0u};
    const pair late[2] = {transpose_matrix(a[1]), transpose_matrix(a[3])};
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const Powers powers = keys.powers[(at.warp * 16 + n * 8 + at.column) / 2];
        const float read[2] = {low(powers.read[0]), high(powers.read[0])};
        const float cross[2] = {low(powers.cross), high(powers.cross)};
#pragma unroll
        for (int e = 0; e < 4; e++) dr[n][e] *= read[e & 1];
        mma_half(dr[n], a, b[2 * n]);
        dr[n][2] *= cross[0];
        dr[n][3] *= cross[1];
        mma_half(dr[n], a + 2, b[2 * n + 1]);

        mma_half(dk[n], late, r[2 * n + 1]);
        dk[n][0] *= cross[0];
        dk[n][1] *= cross[1];
        mma_half(dk[n], early, r[2 * n]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int o = (at.row + half * 8) * kExchangeRow + n * 8 + at.column;
            *(float2 *)&to.dr[o] = make_float2(dr[n][2 * half], dr[n][2 * half + 1]);
            *(float2 *)&to.dk_inside[o] = make_float2(dk[n][2 * half], dk[n][2 * half + 1]);
        }
    }

    pair r_rows[4];
    b_as_a(r_rows, r);
    if (starts.any()) keep_tokens(r_rows, 0, starts.first(), at.column);
    const int odd = (at.row & 1) * 16;
#pragma unroll
    for (int q = 0; q < 4; q++) {  // rows `row`, row + 8; tokens of the first, the second block
        const Powers &powers = keys.powers[(own + (q & 1) * 8) / 2];
        r_rows[q] = multiply(r_rows[q], (powers.read[q >> 1] >> odd & 0xffffu) * 0x10001u);
    }
    const float keep = starts.any() ? 0.f : keys.keep[own];
    const float keep_next = starts.any() ? 0.f : keys.keep[own + 8];
#pragma unroll
    for (int n = 0; n < VALUES / 16; n++) {  // D <- keep D + (r 2^c')ᵀ dY
        load_b<kValueRow>(b, dy + n * 16);
#pragma unroll
        for (int z = 0; z < 2; z++) {
            float *d = side.D[2 * n + z];
            d[0] *= keep;
            d[1] *= keep;
            d[2] *= keep_next;
            d[3] *= keep_next;
            mma(d, r_rows, b + 2 * z);
        }
    }
}

// From the products to the gradients, in the layout of the loads.
DEVICE void finish_keys(KeySide &side, const Exchange &from, const Outputs &to, const Head &head,
                        int token, int p, const Lane &at) {
    token += at.group * 4;
    const int column = 2 * (at.lane & 7);
    const KeyInputs in = load_keys(head, token, p);
    const Decays d = decays_of(head, in, token, p, at);
    const float2 bonus = head.u[p];
    float dr[2][4], dk[2][4], dw[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float u = h ? bonus.y : bonus.x, centre = d.centre[h];
        const float to_end = exp2_fast(d.total[h] - centre);
        float c = d.before[h], x_minus_y[4], y[4], z[4], sum = 0.f, through = 0.f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int t = at.group * 4 + j, o = t * kExchangeRow + column + h;
            const float r = h ? input_high(in.r[j]) : input_low(in.r[j]);
            const float k = h ? input_high(in.k[j]) : input_low(in.k[j]);
            const float scale_r = exp2_fast(c - centre);
            c += d.log2_w[h][j];
            const float scale_k = exp2_fast(centre - c);
            const float inside = from.dk_inside[o], by_state = from.dk_through[o], e = from.e[t];
            dr[h][j] = from.dr[o] * scale_r + e * u * k;
            dk[h][j] = inside * scale_k + by_state * (scale_k * to_end) + e * u * r;
            side.du[h] += e * r * k;
            // rounded as in the tiles
            y[j] = rounded(k * scale_k) * inside;
            x_minus_y[j] = rounded(r * scale_r) * from.dr[o] - y[j];
            z[j] = rounded(k * scale_k * to_end) * by_state;
            sum += x_minus_y[j];
            through += z[j];
        }
        // sums over the groups: of x - y behind this one, of z before it
        float from_here = sum, upto_here = through;
        const float behind = __shfl_sync(ALL_LANES, from_here, at.lane + 8);
        const float before = __shfl_sync(ALL_LANES, upto_here, at.lane - 8);
        from_here += at.group < 3 ? behind : 0.f;
        upto_here += at.group > 0 ? before : 0.f;
        const float behind_2 = __shfl_sync(ALL_LANES, from_here, at.lane + 16);
        const float before_2 = __shfl_sync(ALL_LANES, upto_here, at.lane - 16);
        from_here += at.group < 2 ? behind_2 : 0.f;
        upto_here += at.group > 1 ? before_2 : 0.f;

        float later = from_here - sum, earlier = upto_here + from.kept[column + h];
#pragma unroll
        for (int j = 3; j >= 0; j--) {
            earlier -= z[j];
            const float asked = log_w_of(head, in, j, h, p) * kLog2e;
            const float beyond = exp2_fast(fminf(asked - kFloor, 0.f));
            dw[h][j] = token + j < head.tokens ? (later - y[j] + earlier) * beyond : 0.f;
            later += x_minus_y[j];
            side.dw[h] += dw[h][j];
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (token + j >= head.tokens) break;
        const long long o = head.place(token + j, p);
        to.dr[o] = output(dr[0][j], dr[1][j]);
        to.dk[o] = output(dk[0][j], dk[1][j]);
        if (to.dlog_w) to.dlog_w[o] = output(dw[0][j], dw[1][j]);
    }
}

// ---- the walk along the sequence, backwards

struct Call {
    int tokens, heads;
    const uint8 *resets;       // of the batch row
    const float *checkpoints;  // of the batch row and head
    const float *dfinal_state; // likewise, or null
    const pair *dy;            // of all heads
    float *dstate;
    Outputs to;
};

template <int KEYS, int VALUES>
DEVICE void fill(BackwardTiles<KEYS, VALUES> &tiles, element *v, const Head &head, const pair *dy,
                 int chunk, int panel, const Lane &at) {
    const int token = chunk * kTokens + at.group * 4;
#pragma unroll
    for (int q = 0; q < KEYS / kPanel; q++) {
        const int p = at.pair_of(KEYS == kHead ? q : panel);
        scale_keys(tiles.keys, head, load_keys(head, token, p), token, p, at.pair_of(q), at);
    }
#pragma unroll
    for (int q = 0; q < VALUES / kPanel; q++) {
        const int p = at.pair_of(VALUES == kHead ? q : panel);
        const int place =
            at.group * 4 * row_of(VALUES) + 2 * value_pair_place(at.pair_of(q));
        pair in[4];
        load_four(in, dy, head, token, p);
#pragma unroll
        for (int j = 0; j < 4; j++)
            *(pair *)&tiles.dy[place + j * row_of(VALUES)] = as_operand(in[j]);
        if (!v) continue;
        load_four(in, head.v, head, token, p);
#pragma unroll
        for (int j = 0; j < 4; j++) *(pair *)&v[place + j * row_of(VALUES)] = as_operand(in[j]);
    }
}

template <bool KEY_SIDE, bool VALUE_SIDE>
DEVICE void walk(const Call &call, const Head &head, int panel) {
    constexpr int KEYS = VALUE_SIDE ? kHead : kPanel, VALUES = KEY_SIDE ? kHead : kPanel;
    static_assert(!KEY_SIDE || KEYS == kPanel, "the key side owns all the keys of its tiles");
    auto &shared = shared_memory<SideShared<KEYS, VALUES, KEY_SIDE>>();
    const Lane at;
    const int chunks = (call.tokens + kTokens - 1) / kTokens;
    const int value = panel * kPanel + value_channel(at.warp * 16 + at.row);
    const int key = panel * kPanel + at.warp * 16 + at.row;
    ValueSide values;
    KeySide keys;
    if constexpr (VALUE_SIDE) read_state_by_value(values.D, call.dfinal_state, value, at);
    if constexpr (KEY_SIDE) {
        clear<kHead / 8>(keys.D);
        if (call.dfinal_state) {
#pragma unroll
            for (int n = 0; n < kHead / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    keys.D[n][e] =
                        call.dfinal_state[(key + (e >> 1) * 8) * kHead +
                                          value_channel(n * 8 + at.column + (e & 1))];
        }
        keys.du[0] = keys.du[1] = keys.dw[0] = keys.dw[1] = 0.f;
    }

    for (int segment = (chunks - 1) / CHECKPOINT_CHUNKS; segment >= 0; segment--) {
        const int first = segment * CHECKPOINT_CHUNKS, count = chunks - first < CHECKPOINT_CHUNKS ? chunks - first : CHECKPOINT_CHUNKS;
        unsigned bits[2] = {0u, 0u};
        if (RESETS) {
#pragma unroll
            for (int half = 0; half < (CHECKPOINT_CHUNKS + 1) / 2; half++) {
                const int t = (first + 2 * half) * kTokens + at.lane;
                bits[half] = __ballot_sync(ALL_LANES, t < call.tokens && call.resets[t] != 0);
            }
        }
#pragma unroll 1
        for (int i = 0; i < count; i++) {
            element *v = nullptr;
            if constexpr (KEY_SIDE) v = shared.v[i];
            fill(shared.tiles[i], v, head, call.dy, first + i, panel, at);
        }
        __syncthreads();
        if constexpr (KEY_SIDE)
            recompute_states(shared, call.checkpoints + (long long)segment * kHead * kHead, bits,
                             count, panel, at);
#pragma unroll 1
        for (int i = count - 1; i >= 0; i--) {
            const Starts starts{bits_of(bits, i)};
            const int token = (first + i) * kTokens;
            if constexpr (VALUE_SIDE) {
                float dv[2][4];
                value_side(values, dv, shared.tiles[i], starts, at);
                store_values(call.to.dv, head, dv, token, panel, at);
            }
            if constexpr (KEY_SIDE) {
                Exchange &exchange = shared.exchange[at.warp];
                key_side(keys, exchange, shared, i, starts, at);
                __syncwarp();
                finish_keys(keys, exchange, call.to, head, token, at.pair_of(panel), at);
                __syncwarp();
            }
        }
        __syncthreads();
    }

    if constexpr (VALUE_SIDE)
        if (call.dstate) write_state_by_value(call.dstate, values.D, value, at);
    if constexpr (KEY_SIDE) {
        const float2 du = sum_groups(keys.du), dw = sum_groups(keys.dw);
        if (at.group == 0) {
            call.to.du[at.pair_of(panel)] = du;
            if (call.to.dchannel_log_w) call.to.dchannel_log_w[at.pair_of(panel)] = dw;
        }
    }
}

// Grid: heads, batch, and what a head is divided into: 1; with SPLIT_SIDES, the panels of the key
// side, then those of the value side. The inputs and outputs of wkv6_forward, and
//   dy, dr, dk, dv, dlog_w: [B, T, H, N] in the input type; dlog_w null for WKV5
//   du, dchannel_log_w: parts [B, H, N] fp32, to be summed over the batch; the latter null for WKV6
//   dfinal_state, dstate: [B, H, key, value] fp32 or null
extern "C" __global__ void __launch_bounds__(128, 2) wkv6_backward(
    int tokens, int heads, const element *r, const element *k, const element *v,
    const element *log_w, const float *channel_log_w, const float *u, const uint8 *resets,
    const float *checkpoints, const element *dy, const float *dfinal_state, element *dr,
    element *dk, element *dv, element *dlog_w, float *dchannel_log_w, float *du, float *dstate) {
    const Head head = head_at(blockIdx.y, blockIdx.x, tokens, heads, r, k, v, log_w,
                              channel_log_w, u);
    const long long row = (long long)blockIdx.y * heads + blockIdx.x;
    const int segments = ((tokens + kTokens - 1) / kTokens + CHECKPOINT_CHUNKS - 1) / CHECKPOINT_CHUNKS;
    Call call;
    call.tokens = tokens;
    call.heads = heads;
    call.resets = RESETS ? resets + (long long)blockIdx.y * tokens : nullptr;
    call.checkpoints = checkpoints + row * segments * kHead * kHead;
    call.dfinal_state = dfinal_state ? dfinal_state + row * kHead * kHead : nullptr;
    call.dy = (const pair *)dy;
    call.dstate = dstate ? dstate + row * kHead * kHead : nullptr;
    call.to.dr = (pair *)dr;
    call.to.dk = (pair *)dk;
    call.to.dv = dv;
    call.to.dlog_w = (pair *)dlog_w;
    call.to.du = (float2 *)du + row * (kHead / 2);
    call.to.dchannel_log_w =
        dchannel_log_w ? (float2 *)dchannel_log_w + row * (kHead / 2) : nullptr;
#if SPLIT_SIDES
    constexpr int kPanels = kHead / kPanel;
    if (blockIdx.z < kPanels)
        walk<true, false>(call, head, blockIdx.z);
    else
        walk<false, true>(call, head, blockIdx.z - kPanels);
#else
    walk<true, true>(call, head, 0);
#endif
}
