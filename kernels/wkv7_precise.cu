// WKV7 in fp32, token by token: forward and backward of
//     sa = S a;   S <- S diag(w) + sa bᵀ + v kᵀ;   y = S r           with w = e^log_w, S [value, key]
//
// One block a head. A thread holds 32 entries of a row (or, in the backward pass, of a column too);
// PARTS neighbouring threads take turns along it, and add up what they sum. Inputs come 16 tokens at
// a time.
#include "device.cuh"

#ifndef HEAD_SIZE
#define HEAD_SIZE 64
#endif
constexpr int N = HEAD_SIZE;
constexpr int SPAN = 32, PARTS = N / SPAN, THREADS = N * PARTS;
constexpr int L = 16;          // tokens between two checkpoints
constexpr int STEP = 256 / N;  // tokens between two states that the backward pass computes again
constexpr float LOG2_E = 1.4426950408889634f;

enum { R, W, K, V, A, B, INPUTS };
typedef float Tile[L][N];

struct Shared {
    Tile in[INPUTS];
    Tile dy, sa;      // the backward pass alone
    float dsa[2][N];
    uint8 starts[L];  // whether a token starts a document
};

static_assert(sizeof(Shared) == SHARED_BYTES, "the launch must know it");

// Where a thread works: entries first, first + PARTS, first + 2 PARTS .. of a row (of a column).
struct Place {
    int line, first;
};
DEVICE Place place() {
    return {(int)threadIdx.x / PARTS, (int)threadIdx.x % PARTS};
}
DEVICE float add_parts(float x) {
#pragma unroll
    for (int distance = 1; distance < PARTS; distance *= 2)
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

DEVICE void load_tile(Tile &to, const float *from, long long offset, int chunk, int tokens,
                      int stride, bool exponential = false) {
    for (int i = threadIdx.x; i < L * N; i += THREADS) {
        const int token = chunk * L + i / N;
        float x = token < tokens ? from[offset + (long long)token * stride + i % N] : 0.f;
        to[i / N][i % N] = exponential ? exp2_fast(x * LOG2_E) : x;
    }
}
DEVICE void load_inputs(Shared &shared, const float *const *from, const uint8 *resets,
                        long long offset, int chunk, int tokens, int stride) {
#pragma unroll
    for (int i = 0; i < INPUTS; i++)
        load_tile(shared.in[i], from[i], offset, chunk, tokens, stride, i == W);
    const int token = chunk * L + threadIdx.x;
    if (threadIdx.x < L) shared.starts[threadIdx.x] = resets && token < tokens ? resets[token] : 0;
}

// A row of a matrix [N x N] to or from registers; null: zero. For a column the stride is N.
DEVICE void load_line(float s[SPAN], const float *from, int stride) {
#pragma unroll
    for (int j = 0; j < SPAN; j++) s[j] = from ? from[j * PARTS * stride] : 0.f;
}
DEVICE void store_line(float *to, const float s[SPAN]) {
#pragma unroll
    for (int j = 0; j < SPAN; j++) to[j * PARTS] = s[j];
}

DEVICE float dot(const float s[SPAN], const float *x) {
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < SPAN; j++) sum += s[j] * x[j * PARTS];
    return add_parts(sum);
}
// One token in a row; returns what it read to replace.
DEVICE float advance_row(float s[SPAN], const Shared &shared, int t, Place at) {
    const float sa = dot(s, &shared.in[A][t][at.first]), v = shared.in[V][t][at.line];
#pragma unroll
    for (int j = 0; j < SPAN; j++)
        s[j] = s[j] * shared.in[W][t][at.first + j * PARTS] +
               sa * shared.in[B][t][at.first + j * PARTS] +
               v * shared.in[K][t][at.first + j * PARTS];
    return sa;
}

// Vectors: [B, tokens, heads, N]; state, final_state: [B, heads, N, N]; origin: [heads, N, N];
// resets: [B, tokens]; checkpoints: [B, heads, chunks, N, N], the states that enter the chunks. Null
// state and origin are zero; null resets, final_state and checkpoints are absent. Grid: heads, B.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wkv7_precise_forward(int tokens, int heads, const float *r, const float *log_w, const float *k,
                         const float *v, const float *a, const float *b, const float *state,
                         const float *origin, const uint8 *resets, float *y, float *final_state,
                         float *checkpoints) {
    Shared &shared = shared_memory<Shared>();
    const Place at = place();
    const int head = blockIdx.x, stride = heads * N, chunks = (tokens + L - 1) / L;
    const long long sequence = blockIdx.y, number = sequence * heads + head;
    const long long offset = (sequence * tokens * heads + head) * N;
    const int entry = at.line * N + at.first;
    const float *from[INPUTS] = {r, log_w, k, v, a, b};
    if (resets) resets += sequence * tokens;

    float s[SPAN];
    load_line(s, state ? state + number * N * N + entry : nullptr, 1);
    for (int chunk = 0; chunk < chunks; chunk++) {
        load_inputs(shared, from, resets, offset, chunk, tokens, stride);
        __syncthreads();
        if (checkpoints) store_line(checkpoints + (number * chunks + chunk) * N * N + entry, s);
        const int left = tokens - chunk * L < L ? tokens - chunk * L : L;
        for (int t = 0; t < left; t++) {
            if (shared.starts[t])
                load_line(s, origin ? origin + (long long)head * N * N + entry : nullptr, 1);
            advance_row(s, shared, t, at);
            const float out = dot(s, &shared.in[R][t][at.first]);
            if (at.first == 0) y[offset + (long long)(chunk * L + t) * stride + at.line] = out;
        }
        __syncthreads();
    }
    if (final_state) store_line(final_state + number * N * N + entry, s);
}

// As above; checkpoints as the forward pass wrote them. scratch: [B, heads, L / STEP, N, N]. dorigin:
// [B, heads, N, N], zero at first. Null dfinal is zero, null dstate and dorigin are not wanted.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wkv7_precise_backward(int tokens, int heads, const float *r, const float *log_w, const float *k,
                          const float *v, const float *a, const float *b, const float *dy,
                          const float *origin, const uint8 *resets, const float *checkpoints,
                          const float *dfinal, float *dr, float *dlog_w, float *dk, float *dv,
                          float *da, float *db, float *dstate, float *dorigin, float *scratch) {
    Shared &shared = shared_memory<Shared>();
    const Place at = place();
    const int head = blockIdx.x, stride = heads * N, chunks = (tokens + L - 1) / L;
    const long long sequence = blockIdx.y, number = sequence * heads + head;
    const long long offset = (sequence * tokens * heads + head) * N;
    const int row_entry = at.line * N + at.first, column_entry = at.first * N + at.line;
    const float *from[INPUTS] = {r, log_w, k, v, a, b};
    const float *start = origin ? origin + (long long)head * N * N : nullptr;
    if (resets) resets += sequence * tokens;
    float *states = scratch + number * (L / STEP) * N * N;

    float row[SPAN], column[SPAN];  // of D = dL/dS, one row and one column
    load_line(row, dfinal ? dfinal + number * N * N + row_entry : nullptr, 1);
    load_line(column, dfinal ? dfinal + number * N * N + column_entry : nullptr, N);
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        const int left = tokens - chunk * L < L ? tokens - chunk * L : L;
        load_inputs(shared, from, resets, offset, chunk, tokens, stride);
        load_tile(shared.dy, dy, offset, chunk, tokens, stride);
        __syncthreads();
        {  // The states before every STEP-th token, and what the tokens read to replace. Others read
           // both behind the barrier that dsa needs.
            float s[SPAN];
            load_line(s, checkpoints + (number * chunks + chunk) * N * N + row_entry, 1);
            for (int t = 0; t < left; t++) {
                if (t % STEP == 0) store_line(states + t / STEP * N * N + row_entry, s);
                if (shared.starts[t]) load_line(s, start ? start + row_entry : nullptr, 1);
                const float sa = advance_row(s, shared, t, at);
                if (at.first == 0) shared.sa[t][at.line] = sa;
            }
        }
        for (int t = left - 1; t >= 0; t--) {
            const float own_dy = shared.dy[t][at.line], own_r = shared.in[R][t][at.line];
#pragma unroll
            for (int j = 0; j < SPAN; j++) {
                row[j] += own_dy * shared.in[R][t][at.first + j * PARTS];
                column[j] += own_r * shared.dy[t][at.first + j * PARTS];
            }
            const float own_dv = dot(row, &shared.in[K][t][at.first]);
            const float own_dsa = dot(row, &shared.in[B][t][at.first]);
            float *dsa = shared.dsa[t & 1];
            if (at.first == 0) dsa[at.line] = own_dsa;
            __syncthreads();

            // The state before the token, this thread's column: from the last one that is known, or
            // a document's start, by the tokens since then.
            const int begin = t / STEP * STEP;
            const float *known = states + t / STEP * N * N + column_entry;
            float w[STEP - 1], b[STEP - 1], k[STEP - 1];
#pragma unroll
            for (int step = 0; step < STEP - 1; step++) {
                const int token = begin + step;
                const bool counts = token < t;
                w[step] = counts ? shared.in[W][token][at.line] : 1.f;
                b[step] = counts ? shared.in[B][token][at.line] : 0.f;
                k[step] = counts ? shared.in[K][token][at.line] : 0.f;
            }
#pragma unroll
            for (int step = 0; step < STEP; step++) {
                if (begin + step > t || !shared.starts[begin + step]) continue;
                known = start ? start + column_entry : nullptr;
#pragma unroll
                for (int earlier = 0; earlier < step; earlier++)
                    w[earlier] = 1.f, b[earlier] = k[earlier] = 0.f;
            }
            const float own_w = shared.in[W][t][at.line], own_a = shared.in[A][t][at.line];
            const float own_b = shared.in[B][t][at.line], own_k = shared.in[K][t][at.line];
            float sum_r = 0.f, sum_w = 0.f, sum_k = 0.f, sum_a = 0.f, sum_b = 0.f;
#pragma unroll
            for (int i = 0; i < SPAN; i++) {
                const float value = shared.in[V][t][at.first + i * PARTS];
                const float sa = shared.sa[t][at.first + i * PARTS];
                float s = known ? known[i * PARTS * N] : 0.f;
#pragma unroll
                for (int step = 0; step < STEP - 1; step++) {
                    const int token = begin + step < t ? begin + step : t;
                    s = s * w[step] + shared.sa[token][at.first + i * PARTS] * b[step] +
                        shared.in[V][token][at.first + i * PARTS] * k[step];
                }
                const float behind = s * own_w + sa * own_b + value * own_k;
                sum_r += behind * shared.dy[t][at.first + i * PARTS];
                sum_w += column[i] * s;
                sum_k += column[i] * value;
                sum_b += column[i] * sa;
                sum_a += s * dsa[at.first + i * PARTS];
                column[i] = column[i] * own_w + dsa[at.first + i * PARTS] * own_a;
                row[i] = row[i] * shared.in[W][t][at.first + i * PARTS] +
                         own_dsa * shared.in[A][t][at.first + i * PARTS];
            }
            sum_r = add_parts(sum_r), sum_w = add_parts(sum_w) * own_w, sum_k = add_parts(sum_k);
            sum_a = add_parts(sum_a), sum_b = add_parts(sum_b);
            if (at.first == 0) {
                const long long to = offset + (long long)(chunk * L + t) * stride + at.line;
                dr[to] = sum_r;
                dlog_w[to] = sum_w;
                dk[to] = sum_k;
                dv[to] = own_dv;
                da[to] = sum_a;
                db[to] = sum_b;
            }
            if (shared.starts[t]) {
                if (dorigin) {
                    float *sum = dorigin + number * N * N + row_entry;
#pragma unroll
                    for (int i = 0; i < SPAN; i++) sum[i * PARTS] += row[i];
                }
#pragma unroll
                for (int i = 0; i < SPAN; i++) row[i] = column[i] = 0.f;
            }
        }
        __syncthreads();
    }
    if (dstate) store_line(dstate + number * N * N + row_entry, row);
}
