// WKV7 forward, chunked: one block a head, one warp for 16 value rows of the state.
//
// A chunk takes two barriers: scaled operands go to shared memory; four warps make one 16 x 16
// matrix each; every warp then reads and updates its rows of the state, which stay in registers.
#include "wkv7_chunk.cuh"

struct Tiles {
    element a_bar[L * ROW], r_bar[L * ROW], k_hat[L * ROW], b_hat[L * ROW], v[L * ROW];
    float enter[N], leave[N];  // e^m and e^(c_L - m)
};
struct Shared {
    Tiles tiles[2];
    element matrices[4][L * SMALL];
    float scratch[L * EXACT];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// What a lane holds of the next chunk's inputs: four channels of two tokens.
struct Inputs {
    uint2 of[FORWARD_INPUTS][2];
    uint8 starts;  // whether token lane % 16 starts a document
};

// The kernel's parameters; `offset` leads to a sequence and head.
struct Pointers {
    const element *of[FORWARD_INPUTS];
    const uint8 *resets;
};

DEVICE void load(Inputs &in, const Pointers &from, long long offset, int chunk, int tokens,
                 int stride) {
    const int first = chunk * L + lane_token();
    const long long at = offset + (long long)first * stride + lane_channel();
#pragma unroll
    for (int which = 0; which < 2; which++) {
        const bool inside = first + which < tokens;
#pragma unroll
        for (int i = 0; i < FORWARD_INPUTS; i++)
            in.of[i][which] =
                inside ? *(const uint2 *)&from.of[i][at + which * stride] : make_uint2(0, 0);
    }
#if RESETS
    const int token = chunk * L + (lane_id() & 15);
    in.starts = token < tokens ? from.resets[(long long)blockIdx.y * tokens + token] : 0;
#endif
}

// Scale the inputs of a segment and put them into shared memory.
DEVICE void scale_inputs(Tiles &tiles, const Inputs &in, Segment segment) {
    scale_operands<true, false>(tiles, segment,
                                [&](int input, int which) { return in.of[input][which]; });
    element *v = &tiles.v[lane_token() * ROW + lane_channel()];
    *(uint2 *)v = in.of[V][0];
    *(uint2 *)&v[ROW] = in.of[V][1];
}

// r, log_w, k, v, a, b, y: [B, tokens, heads, N]. state, origin: [B, heads, N, N] and [heads, N, N]
// or null for zero. resets: [B, tokens], read with RESETS. checkpoints: [B, heads,
// ceil(chunks / CHECKPOINT_CHUNKS), N, N], or null. Grid: heads, B.
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
    wkv7_forward(int tokens, int heads, const element *r, const element *log_w, const element *k,
                 const element *v, const element *a, const element *b, const float *state,
                 const float *origin, const uint8 *resets, element *y, float *final_state,
                 checkpoint *checkpoints) {
    Shared &shared = shared_memory<Shared>();
    const int head = blockIdx.x, stride = heads * N, first_row = warp_id() * 16;
    const long long sequence = blockIdx.y, number = sequence * heads + head;
    const long long offset = (sequence * tokens * heads + head) * N;
    const Pointers from = {{r, log_w, k, v, a, b}, resets};
    const int chunks = (tokens + L - 1) / L;
    const int groups = (chunks + CHECKPOINT_CHUNKS - 1) / CHECKPOINT_CHUNKS;

    float s[2 * BLOCKS][4];  // this warp's rows of the state
    load_rows<N>(s, state ? state + (number * N + first_row) * N : nullptr);
    Inputs in;
    load(in, from, offset, 0, tokens, stride);
    int buffer = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int left = tokens - chunk * L;
        Segment segment = {0, left < L ? left : L};
        const unsigned starts = RESETS ? document_starts(in.starts) : 0;
        for (int next = 0; next < L; segment.first = next) {
            next = next_start(starts, segment.first);
            segment.last = next < left ? next : left;
            if (RESETS && (starts >> segment.first & 1)) {
                keep_order();  // a branch, not a second copy of s
                load_rows<N>(s, origin ? origin + ((long long)head * N + first_row) * N : nullptr);
            }
            Tiles &tiles = shared.tiles[buffer];
            scale_inputs(tiles, in, segment);
            if (next == L && chunk + 1 < chunks) load(in, from, offset, chunk + 1, tokens, stride);
            __syncthreads();
            if (warp_id() < 4) make_matrix(tiles, shared.matrices, shared.scratch);
            __syncthreads();

            pair s_bar[BLOCKS][4], values[4], u_rows[4], b[4];
            float u[2][4], out[2][4];
#if CHECKPOINT_CHUNKS > 1
            if (checkpoints && segment.first == 0 && chunk % CHECKPOINT_CHUNKS == 0) {
                const long long group = number * groups + chunk / CHECKPOINT_CHUNKS;
                store_rows<N>(checkpoints + (group * N + first_row) * N, s);
            }
#endif
            if (CENTRED) scale_columns<2 * BLOCKS>(s, tiles.enter);
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) repack(s_bar[block], s + 2 * block);
#if CHECKPOINT_CHUNKS == 1
            if (checkpoints && segment.first == 0) {
                checkpoint *to = checkpoints + (number * groups + chunk) * N * N;
#pragma unroll
                for (int block = 0; block < BLOCKS; block++)
                    store_a_tiled<N>(to, first_row, 2 * block, s_bar[block]);
            }
#endif
            clear<2>(u), clear<2>(out);
            read_state(u, s_bar, tiles.a_bar);
            read_state(out, s_bar, tiles.r_bar);
            load_a_transposed<ROW>(values, tiles.v + first_row);
            read_to_replace(u, shared.matrices, values);
            repack(u_rows, u);
            load_b_transposed<SMALL>(b, shared.matrices[A_RK]);
            multiply_add(out, values, b);
            load_b_transposed<SMALL>(b, shared.matrices[A_RB]);
            multiply_add(out, u_rows, b);
            write_to_state(s, tiles, values, u_rows);
            scale_columns<2 * BLOCKS>(s, tiles.leave);
            store_columns_of_block(y + offset + (long long)chunk * L * stride + first_row, stride,
                                   segment.first, segment.last, out);
            buffer ^= 1;
        }
    }
    if (final_state) store_rows<N>(final_state + (number * N + first_row) * N, s);
}
