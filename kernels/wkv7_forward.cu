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

// What a lane holds of the next chunk's inputs: two channels of four tokens.
struct Inputs {
    pair r[4], log_w[4], k[4], v[4], a[4], b[4];
    uint8 starts;  // whether token lane % 16 starts a document
};

// The kernel's parameters; `offset` leads to a sequence and head.
struct Pointers {
    const element *r, *log_w, *k, *v, *a, *b;
    const uint8 *resets;
};

DEVICE void load(Inputs &in, const Pointers &from, long long offset, int chunk, int tokens,
                 int stride) {
    const int lane = lane_id(), channel = warp_id() * 16 + (lane & 7) * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int token = chunk * L + (lane >> 3) * 4 + i;
        const bool inside = token < tokens;
        const long long at = offset + (long long)token * stride + channel;
        in.r[i] = inside ? *(const pair *)&from.r[at] : 0;
        in.log_w[i] = inside ? *(const pair *)&from.log_w[at] : 0;
        in.k[i] = inside ? *(const pair *)&from.k[at] : 0;
        in.v[i] = inside ? *(const pair *)&from.v[at] : 0;
        in.a[i] = inside ? *(const pair *)&from.a[at] : 0;
        in.b[i] = inside ? *(const pair *)&from.b[at] : 0;
    }
    const int token = chunk * L + (lane & 15);
    in.starts = 0;
    if (from.resets && token < tokens)
        in.starts = from.resets[(long long)blockIdx.y * tokens + token];
}

// Scale the inputs of a segment and put them into shared memory.
DEVICE void scale_operands(Tiles &tiles, const Inputs &in, Segment segment) {
    const int lane = lane_id(), group = lane >> 3;  // four tokens a group of lanes
    const int channel = warp_id() * 16 + (lane & 7) * 2;
    float log2_w[2][4], before[2], total[2], centre[2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float x = c ? high(in.log_w[i]) : low(in.log_w[i]);
            log2_w[c][i] = segment.holds(group * 4 + i) ? x * LOG2_E : 0.f;
            sum += log2_w[c][i];
        }
        float upto = sum;  // over the groups up to this one
        const float one = __shfl_sync(ALL_LANES, upto, lane - 8);
        if (group >= 1) upto += one;
        const float two = __shfl_sync(ALL_LANES, upto, lane - 16);
        if (group >= 2) upto += two;
        centre[c] = CENTRED ? __shfl_sync(ALL_LANES, upto, 8 + (lane & 7)) : 0.f;
        before[c] = upto - sum - centre[c];
        total[c] = upto - centre[c];
    }
    if (group == 3) {
        *(float2 *)&tiles.enter[channel] = make_float2(exp2_fast(centre[0]), exp2_fast(centre[1]));
        *(float2 *)&tiles.leave[channel] = make_float2(exp2_fast(total[0]), exp2_fast(total[1]));
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int token = group * 4 + i, at = token * ROW + channel;
        const float keep = segment.holds(token) ? 1.f : 0.f;
        const float read_a[2] = {keep * exp2_fast(before[0]), keep * exp2_fast(before[1])};
        before[0] += log2_w[0][i];
        before[1] += log2_w[1][i];
        const float read_r[2] = {keep * exp2_fast(before[0]), keep * exp2_fast(before[1])};
        const float write[2] = {keep * exp2_fast(-before[0]), keep * exp2_fast(-before[1])};
        *(pair *)&tiles.a_bar[at] = pack(low(in.a[i]) * read_a[0], high(in.a[i]) * read_a[1]);
        *(pair *)&tiles.r_bar[at] = pack(low(in.r[i]) * read_r[0], high(in.r[i]) * read_r[1]);
        *(pair *)&tiles.k_hat[at] = pack(low(in.k[i]) * write[0], high(in.k[i]) * write[1]);
        *(pair *)&tiles.v[at] = in.v[i];
        *(pair *)&tiles.b_hat[at] = pack(low(in.b[i]) * write[0], high(in.b[i]) * write[1]);
    }
}

// r, log_w, k, v, a, b, y: [B, tokens, heads, N]. state, origin: [B, heads, N, N] and [heads, N, N]
// or null for zero. resets: [B, tokens] or null. checkpoints: [B, heads, ceil(chunks / CHECKPOINT_CHUNKS),
// N, N], or null. Grid: heads, B.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800 && MIN_BLOCKS > 3
#undef MIN_BLOCKS  // sm_80 would spill eight bytes for a fourth block
#define MIN_BLOCKS 3
#endif
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
    wkv7_forward(int tokens, int heads, const element *r, const element *log_w, const element *k,
                 const element *v, const element *a, const element *b, const float *state,
                 const float *origin, const uint8 *resets, element *y, float *final_state,
                 checkpoint *checkpoints) {
    Shared &shared = shared_memory<Shared>();
    const int head = blockIdx.x, stride = heads * N, first_row = warp_id() * 16;
    const long long sequence = blockIdx.y, number = sequence * heads + head;
    const long long offset = (sequence * tokens * heads + head) * N;
    const Pointers from = {r, log_w, k, v, a, b, resets};
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
        const unsigned starts = document_starts(in.starts);
        for (int next = 0; next < L; segment.first = next) {
            next = next_start(starts, segment.first);
            segment.last = next < left ? next : left;
            if (starts >> segment.first & 1) {
                keep_order();  // a branch, not a second copy of s
                load_rows<N>(s, origin ? origin + ((long long)head * N + first_row) * N : nullptr);
            }
            Tiles &tiles = shared.tiles[buffer];
            scale_operands(tiles, in, segment);
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
                checkpoint *to = checkpoints + ((number * groups + chunk) * N + first_row) * N;
                to += fragment_row() * N + fragment_column();
#pragma unroll
                for (int block = 0; block < BLOCKS; block++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        *(pair *)&to[(i & 1) * 8 * N + block * 16 + (i >> 1) * 8] = s_bar[block][i];
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
