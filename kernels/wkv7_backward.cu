// WKV7 backward, chunked: one block a head, chunks from the last to the first.
//
// D = dL/dS [value, key] of the state that leaves a chunk stays in registers, a warp for 16 value
// rows. With D̃ = D e^(c_L - m), and the names of wkv7_chunk.cuh:
//     dZ = (I - A_ab)⁻ᵀ (A_rbᵀ dY + b̂ D̃ᵀ)                     by value rows
//     dV = A_rkᵀ dY + k̂ D̃ᵀ + A_akᵀ dZ
//     D' = (D̃ + dYᵀ r̄ + dZᵀ ā) e^m                            of the state that enters the chunk
//     dA_rk, dA_rb = lower part of dY Vᵀ, dY Uᵀ;   dA_ak, dA_ab = strictly lower part of dZ Vᵀ, dZ Uᵀ
//     dr = e^(c - m) (dY S̄ + dA_rk k̂ + dA_rb b̂)               by key columns
//     da = e^(c' - m) (dZ S̄ + dA_ak k̂ + dA_ab b̂)
//     dk = e^(m - c) (V D̃ + dA_rkᵀ r̄ + dA_akᵀ ā)
//     db = e^(m - c) (U D̃ + dA_rbᵀ r̄ + dA_abᵀ ā)
//     dlog_w_t = Σ_{s >= t} (r dr - k dk - b db)_s + Σ_{s > t} (a da)_s    with dk, db without D̃
//              + Σ_{s < t} (k V D̃ + b U D̃)_s + Σ_value S̄ D̃
// The sums for dlog_w use the rounded operands of the products above, so that pairs of tokens
// inside the chunk cancel exactly. S̄ comes from the checkpoints of the forward pass.
#include "wkv7_gradients.cuh"

// Inputs and gradients of the vectors: [B, tokens, heads, N]; state, dfinal, dstate: [B, heads, N, N];
// origin: [heads, N, N]; dorigin: [B, heads, N, N], zero at first, null where not wanted; resets: [B,
// tokens]. Null origin and dfinal are zero, a null dstate is not wanted. checkpoints: as
// wkv7_forward wrote them. Grid: heads, B.
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
    wkv7_backward(int tokens, int heads, const element *r, const element *log_w, const element *k,
                  const element *v, const element *a, const element *b, const element *dy,
                  const float *origin, const uint8 *resets, const checkpoint *checkpoints,
                  const float *dfinal, element *dr, element *dlog_w, element *dk, element *dv,
                  element *da, element *db, float *dstate, float *dorigin) {
    Shared &shared = shared_memory<Shared>();
    const int head = blockIdx.x, stride = heads * N, first_row = warp_id() * 16;
    const long long sequence = blockIdx.y, number = sequence * heads + head;
    const long long offset = (sequence * tokens * heads + head) * N;
    const Pointers from = {r, log_w, k, v, a, b, dy, resets};
    const int chunks = (tokens + L - 1) / L;
    const int groups = (chunks + CHECKPOINT_CHUNKS - 1) / CHECKPOINT_CHUNKS;
    const float *start = origin ? origin + ((long long)head * N + first_row) * N : nullptr;
    uint8 flag = 0;  // whether token lane % 16 of the chunk loaded last starts a document
    int buffer = 0;

    float d[2 * BLOCKS][4];  // this warp's rows of D
    load_rows<N>(d, dfinal ? dfinal + (number * N + first_row) * N : nullptr);
    load(shared.raw[0], flag, from, offset, (groups - 1) * CHECKPOINT_CHUNKS, tokens, stride,
         chunks == (groups - 1) * CHECKPOINT_CHUNKS + 1);
#if CHECKPOINT_CHUNKS == 1
    load_state(shared.entering[0], checkpoints, number * groups + chunks - 1);
    copy_async_commit();
#endif
    for (int group = groups - 1; group >= 0; group--) {
        const int begin = group * CHECKPOINT_CHUNKS;
        const int count = chunks - begin < CHECKPOINT_CHUNKS ? chunks - begin : CHECKPOINT_CHUNKS;
#if CHECKPOINT_CHUNKS > 1
        // The states that enter the group's chunks, from the one that is known.
        float s[2 * BLOCKS][4];
        load_rows<N>(s, checkpoints + ((number * groups + group) * N + first_row) * N);
        for (int i = 0;; i++) {
            pair s_bar[BLOCKS][4];
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                repack(s_bar[block], s + 2 * block);
                store_a_tiled<N>(shared.entering[i], first_row, 2 * block, s_bar[block]);
            }
            if (i == count - 1) break;
            load(shared.raw[buffer ^ 1], flag, from, offset, begin + i + 1, tokens, stride,
                 i + 1 == count - 1);
            copy_async_wait<1>();
            __syncwarp();
            const Raw &raw = shared.raw[buffer];
            scale_inputs<false>(shared, raw, {0, L});  // only the last chunk of all can be short
            __syncthreads();
            if (warp_id() < 2) make_matrix(shared, shared.matrices, (float *)shared.u);
            __syncthreads();
            pair values[4], u_rows[4];
            float u[2][4];
            load_a_transposed<ROW>(values, &raw[V][first_row]);
            clear<2>(u);
            read_state(u, s_bar, shared.a_bar);
            read_to_replace(u, shared.matrices, values);
            repack(u_rows, u);
            write_to_state(s, shared, values, u_rows);
            scale_columns<2 * BLOCKS>(s, shared.leave);
            __syncthreads();
            buffer ^= 1;
        }
#endif
        for (int i = count - 1; i >= 0; i--) {
            const int chunk = begin + i, left = tokens - chunk * L;
            const Raw &raw = shared.raw[buffer];
            const unsigned starts = RESETS ? document_starts(flag) : 0;
#if BUFFERS == 2
            // Next come the chunk before, or the first of the group before.
            const bool same_group = CHECKPOINT_CHUNKS == 1 || i > 0;
            load(shared.raw[buffer ^ 1], flag, from, offset,
                 same_group ? chunk - 1 : begin - CHECKPOINT_CHUNKS, tokens, stride, same_group);
            copy_async_wait<CHECKPOINT_CHUNKS == 1 ? 2 : 1>();
#else
            copy_async_wait<1>();
#endif
            __syncwarp();
            Segment segment = {0, left < L ? left : L};
#if RESETS
            for (int end = L; end > 0; end = segment.first) {
                segment.first = previous_start(starts, end);
                segment.last = end < left ? end : left;
                if (starts >> 1) copy_async_wait<0>();
                const bool inside = segment.first > 0;
#else
            {
                const bool inside = false;
#endif
                element *entering = shared.entering[i];
                scale_inputs<true>(shared, raw, segment);
                __syncthreads();
                pair grad_rows[BLOCKS][4];
                if (RESETS && inside) fill_state(entering, start, shared.enter);
                scale_columns<2 * BLOCKS>(d, shared.leave);
#pragma unroll
                for (int block = 0; block < BLOCKS; block++) {
                    repack(grad_rows[block], d + 2 * block);
                    store_a_tiled<N>(shared.leaving, first_row, 2 * block, grad_rows[block]);
                }
                if (warp_id() < 4) make_matrix(shared, shared.matrices, (float *)shared.u);
#if CHECKPOINT_CHUNKS == 1
                copy_async_wait<BUFFERS - 1>();
#endif
                __syncthreads();
                const long long at = offset + (long long)chunk * L * stride;
                by_value_rows(shared, raw, entering, d, grad_rows, dv + at, stride, segment);
                if (CENTRED) scale_columns<2 * BLOCKS>(d, shared.enter);
                __syncthreads();
                if (warp_id() < 4) make_matrix_gradient(shared, raw);
                Columns columns;
                state_products(columns, shared, raw, entering);
                __syncthreads();
#if BUFFERS == 1
                if (!inside) load(shared.raw[0], flag, from, offset, chunk - 1, tokens, stride, true);
#endif
#if CHECKPOINT_CHUNKS == 1
                const int wanted = inside ? chunk : chunk - 1;
                if (wanted >= 0)
                    load_state(shared.entering[0], checkpoints, number * groups + wanted);
                copy_async_commit();
#endif
                float dlog_w_sums[2][4];
                matrix_products(columns, shared);
                finish(columns, dlog_w_sums, shared);
                auto store = [&](element *to, const float x[2][4]) {
                    store_rows_of_block(to + at + first_row, stride, segment.first, segment.last, x);
                };
                store(dr, columns.r);
                store(da, columns.a);
                store(dk, columns.k);
                store(db, columns.b);
                store(dlog_w, dlog_w_sums);
                if (RESETS && (starts >> segment.first & 1)) {
                    if (dorigin) add_to_rows<N>(dorigin + (number * N + first_row) * N, d);
                    clear<2 * BLOCKS>(d);
                }
                __syncwarp();  // only a race without it: the stores above make the lanes meet
            }
            if (BUFFERS == 2) buffer ^= 1;
        }
    }
    if (dstate) store_rows<N>(dstate + (number * N + first_row) * N, d);
}
