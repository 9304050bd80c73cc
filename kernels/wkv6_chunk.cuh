// WKV6 and WKV5 in chunks of L = 16 tokens: what the forward and the backward kernel share.
//
// One head, S [key, value], log2 decay lw <= 0 (WKV5: the same at every token):
//
//     y_t = r_t (S + diag(u) k_tᵀ v_t),    S <- diag(2^lw_t) S + k_tᵀ v_t.
//
// With c the inclusive and c' the exclusive sum of lw over the chunk, total = c of the last token:
//
//     A_ts = Σ_i r_ti k_si 2^(c'_ti - c_si) for s < t,   A_tt = Σ_i r_ti u_i k_ti,   else 0
//     Y = A V + (r 2^c') S,      S' = diag(2^total) S + (k 2^(total - c))ᵀ V.
//
// A is a product of tiles only if 2^(c' - c) is torn in two, and a decay may be arbitrarily strong.
// So each half of the chunk ("block", 8 tokens) has a centre m_b near its middle, and rows are
// stored as r 2^(c' - m_b) and k 2^(m_b - c): four steps from the centre at most. A step is held at
// kFloor = 2^-15, beneath half of bf16's rounding step by a factor of 64; the exponents stay within
// ±61, and products with values down to 1e-18 stay clear of denormals, which a GPU flushes to zero.
// The centres are whole numbers: going from one centre to another, or to none, is a multiplication
// by a power of two, exact in bf16. The state is never scaled.
//
// Names of sizes: KEYS and VALUES are the channels that a block of threads sees on the two axes of
// the state. Four warps of 32 lanes always; a warp owns 16 channels of a panel of 64.
#include "common.cuh"

#ifndef HEAD_SIZE
#define HEAD_SIZE 64
#endif
#ifndef CHECKPOINT_CHUNKS  // chunks from checkpoint to checkpoint of the state: 1, 2 or 4
#define CHECKPOINT_CHUNKS (HEAD_SIZE == 64 ? 4 : 2)
#endif
#ifndef RESETS  // whether documents start inside the sequence
#define RESETS 0
#endif

constexpr int kHead = HEAD_SIZE;
constexpr int kTokens = 16;            // of a chunk
constexpr int kPanel = 64;             // channels that the four warps own
constexpr int kThreads = 128;
constexpr float kFloor = -15.f;        // log2 of the strongest decay of a token
constexpr float kLog2e = 1.4426950408889634f;

DEVICE constexpr int row_of(int width) { return width + 8; }  // padded: no bank conflicts in ldmatrix

// The tensors' own type. Operands of products are bf16 in any case: fp16 has not the exponents.
#ifdef INPUT_FP16
DEVICE float input_low(pair x) { return widen_fp16((element)x); }
DEVICE float input_high(pair x) { return widen_fp16((element)(x >> 16)); }
DEVICE pair output(float first, float second) { return pack_fp16(first, second); }
DEVICE pair as_operand(pair x) { return pack(input_low(x), input_high(x)); }
#else
DEVICE float input_low(pair x) { return low(x); }
DEVICE float input_high(pair x) { return high(x); }
DEVICE pair output(float first, float second) { return pack(first, second); }
DEVICE pair as_operand(pair x) { return x; }
#endif

// Where a thread stands. The fragment of an accumulator that a lane holds is at rows `row` and
// row + 8, columns `column` and column + 1; it loads tokens 4·group … + 3 of the channel pair
// `pair_of(panel)`.
struct Lane {
    int lane, warp, row, column, group;
    DEVICE Lane()
        : lane(threadIdx.x & 31), warp(threadIdx.x >> 5), row(lane >> 2), column((lane & 3) * 2),
          group(lane >> 3) {}
    DEVICE int pair_of(int panel) const { return panel * 32 + warp * 8 + (lane & 7); }
};

// Values lie in a tile in an order that gives each lane's outputs 4 neighbouring channels: of each
// 16 channels, pairs 0 2 4 6 come first, then 1 3 5 7.
DEVICE int value_pair_place(int p) { return (p & ~7) + (p & 1) * 4 + ((p & 7) >> 1); }
DEVICE int value_channel(int place) {
    return (place & ~15) + 4 * ((place & 7) >> 1) + 2 * ((place >> 3) & 1) + (place & 1);
}

// Powers of two for a pair of key channels, bf16; exponents below -126 count as zero.
struct alignas(16) Powers {
    pair read[2];  // 2^m_b: from block b's centre to none
    pair cross;    // 2^(m_1 - m_0): from one centre to the other
    pair unused;
};

template <int KEYS>
struct KeyTiles {
    element r[kTokens * row_of(KEYS)];      // r 2^(c' - m_b)
    element k[kTokens * row_of(KEYS)];      // k 2^(m_b - c)
    element write[kTokens * row_of(KEYS)];  // k 2^(total - c)
    Powers powers[KEYS / 2];
    float keep[KEYS];                     // 2^total
    float diagonal[kTokens][KEYS / 16];   // parts of A_tt
};

// What both sides of the backward kernel read.
template <int KEYS, int VALUES>
struct BackwardTiles {
    KeyTiles<KEYS> keys;
    element dy[kTokens * row_of(VALUES)];
};
// The shared memory of the value side alone; wkv6_key_side.cuh has that of the key side.
template <int KEYS, int VALUES, bool KEY_SIDE>
struct SideShared {
    BackwardTiles<KEYS, VALUES> tiles[CHECKPOINT_CHUNKS];
};

// Log2 decays of a thread's channel pair (index h) over its four tokens, and their sums.
struct Decays {
    float log2_w[2][4];
    float before[2];     // c' at the first of the four
    float first[2];      // m_0
    float second[2];     // m_1
    float centre[2];     // m_b of the four tokens' own block
    float total[2];
};

// The decays of the four tokens in `log_w` (pairs; natural logarithm); tokens from `left` on
// do not exist and decay nothing.
DEVICE Decays sum_decays(const float log_w[2][4], int left, const Lane &at) {
    Decays d;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float x = fmaxf(log_w[h][j] * kLog2e, kFloor);
            x = j < left ? x : 0.f;
            d.log2_w[h][j] = x;
            sum += x;
        }
        float upto = sum;
        const float one = __shfl_sync(ALL_LANES, upto, at.lane - 8);
        upto += at.group >= 1 ? one : 0.f;
        const float two = __shfl_sync(ALL_LANES, upto, at.lane - 16);
        upto += at.group >= 2 ? two : 0.f;
        d.before[h] = upto - sum;
        d.first[h] = rintf(__shfl_sync(ALL_LANES, upto, at.lane & 7));
        d.second[h] = rintf(__shfl_sync(ALL_LANES, upto, 16 + (at.lane & 7)));
        d.centre[h] = at.group < 2 ? d.first[h] : d.second[h];
        d.total[h] = __shfl_sync(ALL_LANES, upto, 24 + (at.lane & 7));
    }
    return d;
}

// 2^x of whole x <= 0 as the bits of a bf16.
DEVICE pair power_of_two(float x) { return x < -126.f ? 0u : (pair)(127 + (int)x) << 7; }

// Sums over the eight lanes of a group; a lane gets that of token
// ((lane >> 2) & 1) * 2 + ((lane >> 1) & 1).
DEVICE float sum_four(const float x[4], int lane) {
    const bool late = lane & 4, odd = lane & 2;
    float a = late ? x[2] : x[0], b = late ? x[3] : x[1];
    a += __shfl_xor_sync(ALL_LANES, late ? x[0] : x[2], 4);
    b += __shfl_xor_sync(ALL_LANES, late ? x[1] : x[3], 4);
    float sum = odd ? b : a;
    sum += __shfl_xor_sync(ALL_LANES, odd ? a : b, 2);
    return sum + __shfl_xor_sync(ALL_LANES, sum, 1);
}

// The tensors, and where one head lies in them, in pairs of channels.
struct Head {
    const pair *r, *k, *v, *log_w;
    const float2 *channel_log_w;  // WKV5, and log_w is null
    const float2 *u;
    long long first;  // the head's first pair in [B, T, H, N]
    int stride;       // pairs from token to token
    int tokens;
    // Where a token's channel pair lies.
    DEVICE long long place(int token, int p) const {
        return first + (long long)token * stride + p;
    }
};

DEVICE Head head_at(int batch, int index, int tokens, int heads, const element *r,
                    const element *k, const element *v, const element *log_w,
                    const float *channel_log_w, const float *u) {
    Head head;
    head.first = ((long long)batch * tokens * heads + index) * (kHead / 2);
    head.r = (const pair *)r;
    head.k = (const pair *)k;
    head.v = (const pair *)v;
    head.log_w = (const pair *)log_w;
    head.channel_log_w =
        channel_log_w ? (const float2 *)channel_log_w + index * (kHead / 2) : nullptr;
    head.u = (const float2 *)u + index * (kHead / 2);
    head.stride = heads * (kHead / 2);
    head.tokens = tokens;
    return head;
}

// A channel pair of a tensor [B, T, H, N] at four tokens, zero behind the end.
DEVICE void load_four(pair to[4], const pair *from, const Head &head, int token, int p) {
    from += head.place(token, p);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        to[j] = token + j < head.tokens ? *from : 0u;
        from += head.stride;
    }
}

// What a thread reads of a chunk on the key side.
struct KeyInputs {
    pair r[4], k[4], w[4];
};

DEVICE KeyInputs load_keys(const Head &head, int token, int p) {
    KeyInputs in;
    load_four(in.r, head.r, head, token, p);
    load_four(in.k, head.k, head, token, p);
    if (head.log_w) load_four(in.w, head.log_w, head, token, p);
    return in;
}

// log_w of the pair's channel h at token j.
DEVICE float log_w_of(const Head &head, const KeyInputs &in, int j, int h, int p) {
    if (head.log_w) return h ? input_high(in.w[j]) : input_low(in.w[j]);
    const float2 constant = head.channel_log_w[p];
    return h ? constant.y : constant.x;
}

DEVICE Decays decays_of(const Head &head, const KeyInputs &in, int token, int p, const Lane &at) {
    float log_w[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < 4; j++) log_w[h][j] = log_w_of(head, in, j, h, p);
    return sum_decays(log_w, head.tokens - token, at);
}

// Write a thread's part of the key tiles: p its channel pair, `place` that pair in the tile.
template <int KEYS>
DEVICE void scale_keys(KeyTiles<KEYS> &tile, const Head &head, const KeyInputs &in, int token,
                       int p, int place, const Lane &at) {
    constexpr int kRow = row_of(KEYS);
    const float2 u = head.u[p];
    const Decays d = decays_of(head, in, token, p, at);
    const float to_end[2] = {exp2_fast(d.total[0] - d.centre[0]),
                             exp2_fast(d.total[1] - d.centre[1])};
    if (at.group == 0) {
        Powers powers;
        powers.read[0] = power_of_two(d.first[0]) | power_of_two(d.first[1]) << 16;
        powers.read[1] = power_of_two(d.second[0]) | power_of_two(d.second[1]) << 16;
        powers.cross = power_of_two(d.second[0] - d.first[0]) |
                       power_of_two(d.second[1] - d.first[1]) << 16;
        powers.unused = 0u;
        tile.powers[place] = powers;
        *(float2 *)&tile.keep[2 * place] = make_float2(exp2_fast(d.total[0]), exp2_fast(d.total[1]));
    }
    float bonus[4], c[2] = {d.before[0], d.before[1]};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int o = (at.group * 4 + j) * kRow + 2 * place;
        const float r[2] = {input_low(in.r[j]), input_high(in.r[j])};
        const float k[2] = {input_low(in.k[j]), input_high(in.k[j])};
        float scaled_r[2], scaled_k[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            scaled_r[h] = r[h] * exp2_fast(c[h] - d.centre[h]);
            c[h] += d.log2_w[h][j];
            scaled_k[h] = k[h] * exp2_fast(d.centre[h] - c[h]);
        }
        *(pair *)&tile.r[o] = pack(scaled_r[0], scaled_r[1]);
        *(pair *)&tile.k[o] = pack(scaled_k[0], scaled_k[1]);
        *(pair *)&tile.write[o] = pack(scaled_k[0] * to_end[0], scaled_k[1] * to_end[1]);
        bonus[j] = r[0] * u.x * k[0] + r[1] * u.y * k[1];
    }
    const float sum = sum_four(bonus, at.lane);
    if (!(at.lane & 1))
        tile.diagonal[at.group * 4 + ((at.lane >> 2) & 1) * 2 + ((at.lane >> 1) & 1)]
                     [place >> 3] = sum;
}

// A_tt from its parts.
template <int KEYS>
DEVICE float diagonal_of(const KeyTiles<KEYS> &tile, int token) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < KEYS / 16; i += 4) {
        const float4 x = *(const float4 *)&tile.diagonal[token][i];
        sum += (x.x + x.y) + (x.z + x.w);
    }
    return sum;
}

// ---- operands

// b = dᵀ: rows 0-7 and 8-15 of the accumulators become columns.
DEVICE void repack_transposed(pair b[4], const float d[2][4]) {
    b[0] = pack(d[0][0], d[0][1]);
    b[1] = pack(d[1][0], d[1][1]);
    b[2] = pack(d[0][2], d[0][3]);
    b[3] = pack(d[1][2], d[1][3]);
}
// a = bᵀ, as it lies.
DEVICE void b_as_a(pair a[4], const pair b[4]) {
    a[0] = b[0];
    a[1] = b[2];
    a[2] = b[1];
    a[3] = b[3];
}

// ---- document starts inside a chunk, one bit a token

struct Starts {
    unsigned bits;
    DEVICE bool any() const { return RESETS && bits != 0u; }
    // The state that enters the chunk reaches tokens before this one.
    DEVICE int first() const { return any() ? __ffs(bits) - 1 : kTokens; }
    // Tokens from this one on reach the state that leaves the chunk.
    DEVICE int last() const { return any() ? 31 - __clz(bits) : 0; }
    // Tokens t and s lie in the same document.
    DEVICE bool same(int t, int s) const {
        return __popc(bits & ((2u << t) - 1u)) == __popc(bits & ((2u << s) - 1u));
    }
};

// Of an A operand whose columns are tokens, keep those with begin <= token < end.
DEVICE void keep_tokens(pair a[4], int begin, int end, int column) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int t = column + (i >> 1) * 8;
        a[i] &= (t >= begin && t < end ? 0xffffu : 0u) |
                (t + 1 >= begin && t + 1 < end ? 0xffff0000u : 0u);
    }
}

// Of an A operand whose rows are tokens and whose columns are key channels: from each row's centre
// to none.
DEVICE void to_no_centre(pair a[4], const Powers &left, const Powers &right) {
    a[0] = multiply(a[0], left.read[0]);
    a[1] = multiply(a[1], left.read[1]);
    a[2] = multiply(a[2], right.read[0]);
    a[3] = multiply(a[3], right.read[1]);
}

// ---- the state, and tensors over the values, as a warp's 16 value rows see them

// Sᵀ of a state [key, value], as accumulators: rows `row` and row + 8 are the channels value and
// value + 2. Null is zero.
DEVICE void read_state_by_value(float S[kHead / 8][4], const float *state, int value,
                                const Lane &at) {
    clear<kHead / 8>(S);
    if (!state) return;
#pragma unroll
    for (int n = 0; n < kHead / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            S[n][e] = state[(n * 8 + at.column + (e & 1)) * kHead + value + (e >> 1) * 2];
}
DEVICE void write_state_by_value(float *state, const float S[kHead / 8][4], int value,
                                 const Lane &at) {
#pragma unroll
    for (int n = 0; n < kHead / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            state[(n * 8 + at.column + (e & 1)) * kHead + value + (e >> 1) * 2] = S[n][e];
}

// Four neighbouring channels of a tensor over the values, out of an accumulator [token][value].
DEVICE void store_values(element *to, const Head &head, const float x[2][4], int token, int panel,
                         const Lane &at) {
    const int p = panel * (kPanel / 2) + at.warp * 8 + at.column;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int t = token + at.row + half * 8;
        if (t < head.tokens)
            *(uint2 *)&((pair *)to)[head.place(t, p)] =
                make_uint2(output(x[0][2 * half], x[0][2 * half + 1]),
                           output(x[1][2 * half], x[1][2 * half + 1]));
    }
}
