// WKV6 and WKV5 forward in chunks; wkv6_chunk.cuh has the formulas and the scaling.
//
// A block of four warps goes along the sequence for one batch row, one head and 64 of its value
// channels, all keys. Each warp keeps 16 value rows of Sᵀ in fp32 accumulators, which turn into
// operands without leaving the registers, and computes A for itself: cheaper than a barrier. The
// tiles are double buffered: one barrier a chunk.
#include "wkv6_chunk.cuh"

struct ForwardTiles {
    KeyTiles<kHead> keys;
    element v[kTokens * row_of(kPanel)];
};
struct ForwardShared {
    ForwardTiles tiles[2];
};
static_assert(sizeof(ForwardShared) == SHARED_BYTES, "the launch must know it");

// What a thread reads of a chunk, one chunk ahead of its use.
struct ForwardInputs {
    KeyInputs keys[kHead / kPanel];
    pair v[4];
    uint8 start;  // with RESETS: of token `lane`
};

DEVICE void load_inputs(ForwardInputs &in, const Head &head, const uint8 *resets, int chunk,
                        int panel, const Lane &at) {
    const int token = chunk * kTokens + at.group * 4;
#pragma unroll
    for (int q = 0; q < kHead / kPanel; q++) in.keys[q] = load_keys(head, token, at.pair_of(q));
    load_four(in.v, head.v, head, token, at.pair_of(panel));
#if RESETS
    const int t = chunk * kTokens + at.lane;
    in.start = at.lane < kTokens && t < head.tokens ? resets[t] : 0;
#endif
}

DEVICE void fill(ForwardTiles &tiles, const ForwardInputs &in, const Head &head, int chunk,
                 const Lane &at) {
    const int token = chunk * kTokens + at.group * 4;
#pragma unroll
    for (int q = 0; q < kHead / kPanel; q++)
        scale_keys(tiles.keys, head, in.keys[q], token, at.pair_of(q), at.pair_of(q), at);
#pragma unroll
    for (int j = 0; j < 4; j++)
        *(pair *)&tiles.v[(at.group * 4 + j) * row_of(kPanel) +
                          2 * value_pair_place(at.pair_of(0))] = as_operand(in.v[j]);
}

// One chunk: y of the warp's 16 values, and the state S [value rows][key columns] after it.
DEVICE void advance(float y[2][4], float S[kHead / 8][4], const ForwardTiles &tiles,
                    const Starts &starts, const Lane &at) {
    constexpr int kRow = row_of(kHead);
    const KeyTiles<kHead> &keys = tiles.keys;
    float A[2][4];
    pair a[4], b[4];
    clear<2>(A);
    clear<2>(y);
#pragma unroll
    for (int n = 0; n < kHead / 16; n++) {  // A = r kᵀ and y = (r 2^c') S, over the keys
        const Powers left = keys.powers[n * 8 + at.column / 2];
        const Powers right = keys.powers[n * 8 + at.column / 2 + 4];
        load_a<kRow>(a, keys.r + n * 16);
        load_b_transposed<kRow>(b, keys.k + n * 16);
        // the second block's rows meet the first block's keys at the first block's centre
        const pair crossed[4] = {a[0], multiply(a[1], left.cross), a[2],
                                 multiply(a[3], right.cross)};
        mma(A[0], crossed, b);
        mma(A[1], a, b + 2);
        to_no_centre(a, left, right);
        repack_transposed(b, S + 2 * n);
        multiply_add(y, a, b);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int t = at.row + (e >> 1) * 8, s = n * 8 + at.column + (e & 1);
            if (t < s) A[n][e] = 0.f;
            if (t == s) A[n][e] = diagonal_of(keys, t);
            if (starts.any() && !starts.same(t, s)) A[n][e] = 0.f;
            if (t >= starts.first()) y[n][e] = 0.f;
        }
    load_b<row_of(kPanel)>(b, tiles.v + at.warp * 16);
    pair v_rows[4];
    b_as_a(v_rows, b);
    repack(a, A);
    multiply_add(y, a, b);

    if (starts.any()) keep_tokens(v_rows, starts.last(), kTokens, at.column);
#pragma unroll
    for (int n = 0; n < kHead / 16; n++) {  // S <- keep S + vᵀ (k 2^(total - c))
#pragma unroll
        for (int z = 0; z < 2; z++) {
            const float2 kept = *(const float2 *)&keys.keep[n * 16 + z * 8 + at.column];
            float *s = S[2 * n + z];
            s[0] = starts.any() ? 0.f : s[0] * kept.x;
            s[1] = starts.any() ? 0.f : s[1] * kept.y;
            s[2] = starts.any() ? 0.f : s[2] * kept.x;
            s[3] = starts.any() ? 0.f : s[3] * kept.y;
        }
        load_b<kRow>(b, keys.write + n * 16);
        mma(S[2 * n], v_rows, b);
        mma(S[2 * n + 1], v_rows, b + 2);
    }
}

// Grid: heads, batch, panels of 64 values. Tensors are [B, T, H, N] in the input type, contiguous.
//   log_w: [B, T, H, N], or null for WKV5: channel_log_w [H, N] fp32;  u: [H, N] fp32
//   state, final_state: [B, H, key, value] fp32 or null;  resets: [B, T] bytes, read with RESETS
//   checkpoints: [B, H, ceil(chunks / CHECKPOINT_CHUNKS), value, key] fp32 or null, the states entering
extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) wkv6_forward(
    int tokens, int heads, const element *r, const element *k, const element *v,
    const element *log_w, const float *channel_log_w, const float *u, const float *state,
    const uint8 *resets, element *y, float *final_state, float *checkpoints) {
    ForwardShared &shared = shared_memory<ForwardShared>();
    const Lane at;
    const int panel = blockIdx.z;
    if (RESETS) resets += (long long)blockIdx.y * tokens;
    const long long row = (long long)blockIdx.y * heads + blockIdx.x;
    const Head head = head_at(blockIdx.y, blockIdx.x, tokens, heads, r, k, v, log_w,
                              channel_log_w, u);
    const int chunks = (tokens + kTokens - 1) / kTokens;
    const int segments = (chunks + CHECKPOINT_CHUNKS - 1) / CHECKPOINT_CHUNKS;
    // accumulator rows `row` and row + 8 are these channels and the next but one
    const int value = panel * kPanel + value_channel(at.warp * 16 + at.row);

    float S[kHead / 8][4];
    read_state_by_value(S, state ? state + row * kHead * kHead : nullptr, value, at);
    ForwardInputs in;
    load_inputs(in, head, resets, 0, panel, at);
    for (int chunk = 0; chunk < chunks; chunk++) {
        ForwardTiles &tiles = shared.tiles[chunk & 1];
        if (checkpoints && chunk % CHECKPOINT_CHUNKS == 0) {
            float *to = checkpoints + (row * segments + chunk / CHECKPOINT_CHUNKS) * kHead * kHead;
#pragma unroll
            for (int n = 0; n < kHead / 8; n++) {
                const int key = n * 8 + at.column;
                *(float2 *)&to[value * kHead + key] = make_float2(S[n][0], S[n][1]);
                *(float2 *)&to[(value + 2) * kHead + key] = make_float2(S[n][2], S[n][3]);
            }
        }
        fill(tiles, in, head, chunk, at);
        const Starts starts{RESETS ? __ballot_sync(ALL_LANES, in.start != 0) : 0u};
        if (chunk + 1 < chunks) load_inputs(in, head, resets, chunk + 1, panel, at);
        __syncthreads();

        float out[2][4];
        advance(out, S, tiles, starts, at);
        store_values(y, head, out, chunk * kTokens, panel, at);
    }
    if (final_state) write_state_by_value(final_state + row * kHead * kHead, S, value, at);
}
