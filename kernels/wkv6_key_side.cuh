// The key side of the WKV6 backward kernel, one chunk; wkv6_backward.cu has the formulas.
//
// The products over values are computed in accumulators [token][key], handed over through shared
// memory within the warp, and finished in the layout of the loads, where a thread has one channel
// pair at four tokens.
#include "wkv6_chunk.cuh"

// What a warp hands over: its 16 channels of each token.
struct alignas(8) Exchange {
    float dr[kTokens * 16];  // from the row's centre to none is still to come
    float dk_inside[kTokens * 16];   // likewise
    float dk_through[kTokens * 16];  // 2^(total - c) is still to come
    float e[kTokens];
    float kept[16];
};
// Where channels c and c + 1 of token t lie in it. Neither those that write, four lanes a token and
// neighbouring tokens, nor those that read, eight lanes a token and every fourth, meet in a bank.
DEVICE float2 &exchanged(float *of, int t, int c) {
    return *(float2 *)&of[(t ^ (t >> 2 & 1)) * 16 + (c ^ (t << 2 & 8))];
}
DEVICE float2 exchanged(const float *of, int t, int c) { return exchanged((float *)of, t, c); }

template <int KEYS, int VALUES>
struct SideShared<KEYS, VALUES, true> {
    BackwardTiles<KEYS, VALUES> tiles[CHECKPOINT_CHUNKS];
    element v[CHECKPOINT_CHUNKS][kTokens * row_of(VALUES)];
    // The states that enter the chunks, as b operands; each thread reads what it wrote.
    pair states[CHECKPOINT_CHUNKS][VALUES / 4][kThreads];
    Exchange exchange[4];
};

struct Outputs {
    pair *dr, *dk, *dlog_w;
    element *dv;
    float2 *du, *dchannel_log_w;  // of this batch row and head, at panel 0
};

// The document starts of chunk i of a segment.
DEVICE unsigned bits_of(const unsigned bits[2], int i) {
    return (CHECKPOINT_CHUNKS > 2 && i >= 2 ? bits[1] : bits[0]) >> ((i & 1) * 16) & 0xffffu;
}
DEVICE float rounded(float x) { return widen(round_to_element(x)); }

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

DEVICE void hand_over(float *to, const float x[2][4], const Lane &at) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            exchanged(to, at.row + half * 8, n * 8 + at.column) =
                make_float2(x[n][2 * half], x[n][2 * half + 1]);
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
        }
    hand_over(to.dk_through, dk, at);

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
    }
    hand_over(to.dr, dr, at);
    hand_over(to.dk_inside, dk, at);

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
    float2 of_r[4], inside_chunk[4], through_state[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int t = at.group * 4 + j;
        of_r[j] = exchanged(from.dr, t, column);
        inside_chunk[j] = exchanged(from.dk_inside, t, column);
        through_state[j] = exchanged(from.dk_through, t, column);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float u = h ? bonus.y : bonus.x, centre = d.centre[h];
        const float to_end = exp2_fast(d.total[h] - centre);
        float c = d.before[h], x_minus_y[4], y[4], z[4], sum = 0.f, through = 0.f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float e = from.e[at.group * 4 + j];
            const float by_r = h ? of_r[j].y : of_r[j].x;
            const float inside = h ? inside_chunk[j].y : inside_chunk[j].x;
            const float by_state = h ? through_state[j].y : through_state[j].x;
            const float r = h ? input_high(in.r[j]) : input_low(in.r[j]);
            const float k = h ? input_high(in.k[j]) : input_low(in.k[j]);
            const float scale_r = exp2_fast(c - centre);
            c += d.log2_w[h][j];
            const float scale_k = exp2_fast(centre - c);
            dr[h][j] = by_r * scale_r + e * u * k;
            dk[h][j] = inside * scale_k + by_state * (scale_k * to_end) + e * u * r;
            side.du[h] += e * r * k;
            // rounded as in the tiles
            y[j] = rounded(k * scale_k) * inside;
            x_minus_y[j] = rounded(r * scale_r) * by_r - y[j];
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
