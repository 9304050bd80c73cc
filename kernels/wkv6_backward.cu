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
#include "wkv6_key_side.cuh"
#include "wkv6_value_side.cuh"

#ifndef SPLIT_SIDES
#define SPLIT_SIDES (HEAD_SIZE != 64)
#endif

#if SPLIT_SIDES
using KeySideShared = SideShared<kPanel, kHead, true>;
using ValueSideShared = SideShared<kHead, kPanel, false>;
static_assert(sizeof(ValueSideShared) <= sizeof(KeySideShared), "the launch asks for the larger");
#else
using KeySideShared = SideShared<kHead, kHead, true>;
#endif
static_assert(sizeof(KeySideShared) == SHARED_BYTES, "the launch must know it");

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
                __syncwarp();  // only a race without it: the products meet the warp
                finish_keys(keys, exchange, call.to, head, token, at.pair_of(panel), at);
                __syncwarp();  // only a race without it: the next chunk's products do
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
extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) wkv6_backward(
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
