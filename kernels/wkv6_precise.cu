// WKV6 and WKV5 token by token in fp32, forward and backward: slower than the chunked kernels, and
// as exact as the numbers allow. Tensors are fp32.
//
//     y_t = r_t (S + diag(u) k_tᵀ v_t),    S <- diag(w_t) S + k_tᵀ v_t,    S [key, value]
//
// and with e = dy · v, and D the gradient of the state behind the token,
//
//     dr_i = Σ_j S_ij dy_j + u_i k_i e,    dk_i = Σ_j D_ij v_j + u_i r_i e,    du_i += r_i k_i e
//     dv_j = Σ_i D_ij k_i + dy_j Σ_i r_i u_i k_i,    dlog_w_i = w_i Σ_j D_ij S_ij
//     D <- diag(w) D + r_tᵀ dy_t.
//
// A block has one batch row and head. kParts neighbouring lanes take turns along a row (or a column) of
// the state and keep it in registers, kPart elements each: side by side they read side by side. The
// states that dr and dlog_w need are computed again from one checkpoint a chunk, into `scratch`.
#include "device.cuh"

#ifndef HEAD_SIZE
#define HEAD_SIZE 64
#endif

constexpr int kHead = HEAD_SIZE;
constexpr int kTokens = 16;  // of a chunk
constexpr int kPart = 32;
constexpr int kParts = kHead / kPart;
constexpr int kThreads = kHead * kParts;

struct Sequence {
    int tokens, heads;
    const float *r, *k, *v, *log_w, *channel_log_w;  // one of the last two is null
    const uint8 *resets;                             // or null
};

struct Chunk {
    float r[kTokens][kHead], k[kTokens][kHead], v[kTokens][kHead], w[kTokens][kHead];
    float dy[kTokens][kHead], u[kHead];
    int starts[kTokens];
};
static_assert(sizeof(Chunk) == SHARED_BYTES, "the launch must know it");

// Where a thread stands: row (or column) `line` of the state, elements first, first + kParts, ….
struct Place {
    int line, first;
    DEVICE Place() : line(threadIdx.x / kParts), first(threadIdx.x % kParts) {}
    DEVICE bool leads() const { return first == 0; }
};

// The sum over the lanes that share a line.
DEVICE float sum_parts(float x) {
#pragma unroll
    for (int distance = 1; distance < kParts; distance *= 2)
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

DEVICE long long row_of(const Sequence &s, int token) {
    return (((long long)blockIdx.y * s.tokens + token) * s.heads + blockIdx.x) * kHead;
}

// Bring a chunk's inputs into shared memory; all threads wait before and behind.
DEVICE void load_chunk(Chunk &chunk, const Sequence &s, const float *dy, int first, int count) {
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < count * kHead; i += kThreads) {
        const int t = i / kHead, channel = i % kHead;
        const long long o = row_of(s, first + t) + channel;
        chunk.r[t][channel] = s.r[o];
        chunk.k[t][channel] = s.k[o];
        chunk.v[t][channel] = s.v[o];
        chunk.w[t][channel] =
            expf(s.log_w ? s.log_w[o] : s.channel_log_w[blockIdx.x * kHead + channel]);
        if (dy) chunk.dy[t][channel] = dy[o];
    }
    if (threadIdx.x < count)
        chunk.starts[threadIdx.x] =
            s.resets && s.resets[(long long)blockIdx.y * s.tokens + first + threadIdx.x];
    __syncthreads();
}

DEVICE void clear(float x[kPart]) {
#pragma unroll
    for (int i = 0; i < kPart; i++) x[i] = 0.f;
}
// x <- w x + a b, for a column of the state: w and b differ from element to element.
DEVICE void advance_column(float x[kPart], const float *w, const float *b, float a) {
#pragma unroll
    for (int i = 0; i < kPart; i++) x[i] = x[i] * w[i * kParts] + a * b[i * kParts];
}
// The same for a row: one w for all.
DEVICE void advance_row(float x[kPart], float w, const float *b, float a) {
#pragma unroll
    for (int i = 0; i < kPart; i++) x[i] = x[i] * w + a * b[i * kParts];
}
DEVICE float dot(const float x[kPart], const float *y) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kPart; i++) {
        sum += x[i] * y[i * kParts];
        if (i % 8 == 7) keep_order();
    }
    return sum;
}
DEVICE float bonus(const Chunk &chunk, int t, int first) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kPart; i++)
        sum += chunk.r[t][first + i * kParts] * chunk.u[first + i * kParts] *
               chunk.k[t][first + i * kParts];
    return sum;
}
DEVICE void load_u(Chunk &chunk, const float *u) {
    if (threadIdx.x < kHead) chunk.u[threadIdx.x] = u[blockIdx.x * kHead + threadIdx.x];
}

// Grid: heads, batch. r, k, v, log_w, y: [B, T, H, N]; channel_log_w (WKV5), u: [H, N];
// state, final_state: [B, H, key, value] or null; resets: [B, T] bytes or null;
// checkpoints: [B, H, chunks, key, value] or null, the states that enter the chunks.
extern "C" __global__ void __launch_bounds__(kThreads) wkv6_precise_forward(
    int tokens, int heads, const float *r, const float *k, const float *v, const float *log_w,
    const float *channel_log_w, const float *u, const float *state, const uint8 *resets, float *y,
    float *final_state, float *checkpoints) {
    Chunk &chunk = shared_memory<Chunk>();
    const Sequence s{tokens, heads, r, k, v, log_w, channel_log_w, resets};
    const Place at;  // a column
    const long long head = (long long)blockIdx.y * heads + blockIdx.x;
    const int chunks = (tokens + kTokens - 1) / kTokens;
    const int corner = at.first * kHead + at.line;
    load_u(chunk, u);
    float S[kPart];
    clear(S);
    if (state)
#pragma unroll
        for (int i = 0; i < kPart; i++) S[i] = state[head * kHead * kHead + corner + i * kParts * kHead];
    for (int c = 0; c < chunks; c++) {
        const int first = c * kTokens, left = tokens - first;
        const int count = left < kTokens ? left : kTokens;
        load_chunk(chunk, s, nullptr, first, count);
        if (checkpoints)
#pragma unroll
            for (int i = 0; i < kPart; i++)
                checkpoints[(head * chunks + c) * kHead * kHead + corner + i * kParts * kHead] = S[i];
#pragma unroll 1
        for (int t = 0; t < count; t++) {
            if (chunk.starts[t]) clear(S);
            const float *k_t = chunk.k[t] + at.first;
            const float v_t = chunk.v[t][at.line];
            const float sum =
                sum_parts(dot(S, chunk.r[t] + at.first) + v_t * bonus(chunk, t, at.first));
            advance_column(S, chunk.w[t] + at.first, k_t, v_t);
            if (at.leads()) y[row_of(s, first + t) + at.line] = sum;
        }
    }
    if (final_state)
#pragma unroll
        for (int i = 0; i < kPart; i++)
            final_state[head * kHead * kHead + corner + i * kParts * kHead] = S[i];
}

// dv, and the gradient of the first state. Arguments as above and below.
extern "C" __global__ void __launch_bounds__(kThreads) wkv6_precise_backward_values(
    int tokens, int heads, const float *r, const float *k, const float *v, const float *log_w,
    const float *channel_log_w, const float *u, const uint8 *resets, const float *dy,
    const float *dfinal_state, float *dv, float *dstate) {
    Chunk &chunk = shared_memory<Chunk>();
    const Sequence s{tokens, heads, r, k, v, log_w, channel_log_w, resets};
    const Place at;  // a column
    const long long head = (long long)blockIdx.y * heads + blockIdx.x;
    const int corner = at.first * kHead + at.line;
    load_u(chunk, u);
    float D[kPart];
    clear(D);
    if (dfinal_state)
#pragma unroll
        for (int i = 0; i < kPart; i++)
            D[i] = dfinal_state[head * kHead * kHead + corner + i * kParts * kHead];
    for (int c = (tokens - 1) / kTokens; c >= 0; c--) {
        const int first = c * kTokens, left = tokens - first;
        const int count = left < kTokens ? left : kTokens;
        load_chunk(chunk, s, dy, first, count);
#pragma unroll 1
        for (int t = count - 1; t >= 0; t--) {
            const float dy_t = chunk.dy[t][at.line];
            const float sum =
                sum_parts(dot(D, chunk.k[t] + at.first) + dy_t * bonus(chunk, t, at.first));
            advance_column(D, chunk.w[t] + at.first, chunk.r[t] + at.first, dy_t);
            if (chunk.starts[t]) clear(D);
            if (at.leads()) dv[row_of(s, first + t) + at.line] = sum;
        }
    }
    if (dstate)
#pragma unroll
        for (int i = 0; i < kPart; i++)
            dstate[head * kHead * kHead + corner + i * kParts * kHead] = D[i];
}

// dr, dk, the decay's gradient and du. dlog_w: [B, T, H, N], or null for WKV5; du and (WKV5)
// dchannel_log_w: [B, H, N], parts of one batch row; scratch: [B, H, 16, N, N].
extern "C" __global__ void __launch_bounds__(kThreads) wkv6_precise_backward_keys(
    int tokens, int heads, const float *r, const float *k, const float *v, const float *log_w,
    const float *channel_log_w, const float *u, const uint8 *resets, const float *checkpoints,
    const float *dy, const float *dfinal_state, float *scratch, float *dr, float *dk,
    float *dlog_w, float *dchannel_log_w, float *du) {
    Chunk &chunk = shared_memory<Chunk>();
    const Sequence s{tokens, heads, r, k, v, log_w, channel_log_w, resets};
    const Place at;  // a row
    const long long head = (long long)blockIdx.y * heads + blockIdx.x;
    const int chunks = (tokens + kTokens - 1) / kTokens;
    const int corner = at.line * kHead + at.first;
    scratch += head * kTokens * kHead * kHead + threadIdx.x;  // [token][element][thread]
    load_u(chunk, u);
    float S[kPart], D[kPart], du_sum = 0.f, dw_sum = 0.f;
    clear(D);
    if (dfinal_state)
#pragma unroll
        for (int i = 0; i < kPart; i++) D[i] = dfinal_state[head * kHead * kHead + corner + i * kParts];
    for (int c = chunks - 1; c >= 0; c--) {
        const int first = c * kTokens, left = tokens - first;
        const int count = left < kTokens ? left : kTokens;
        load_chunk(chunk, s, dy, first, count);
#pragma unroll
        for (int i = 0; i < kPart; i++)
            S[i] = checkpoints[(head * chunks + c) * kHead * kHead + corner + i * kParts];
#pragma unroll 1
        for (int t = 0; t < count; t++) {
            if (chunk.starts[t]) clear(S);
#pragma unroll
            for (int i = 0; i < kPart; i++) scratch[(t * kPart + i) * kThreads] = S[i];
            advance_row(S, chunk.w[t][at.line], chunk.v[t] + at.first, chunk.k[t][at.line]);
        }
#pragma unroll 1
        for (int t = count - 1; t >= 0; t--) {
            const float *v_t = chunk.v[t] + at.first, *dy_t = chunk.dy[t] + at.first;
            const float r_t = chunk.r[t][at.line], k_t = chunk.k[t][at.line];
            const float w_t = chunk.w[t][at.line], u_i = chunk.u[at.line];
            float by_r = 0.f, by_w = 0.f, e = 0.f;
#pragma unroll
            for (int i = 0; i < kPart; i++) {
                const float state = scratch[(t * kPart + i) * kThreads];
                by_r += state * dy_t[i * kParts];
                by_w += state * D[i];
                e += v_t[i * kParts] * dy_t[i * kParts];
                if (i % 8 == 7) keep_order();
            }
            const float by_k = sum_parts(dot(D, v_t));
            by_r = sum_parts(by_r);
            e = sum_parts(e);
            by_w = w_t * sum_parts(by_w);
            advance_row(D, w_t, dy_t, r_t);
            if (chunk.starts[t]) clear(D);
            du_sum += r_t * k_t * e;
            dw_sum += by_w;
            if (!at.leads()) continue;
            const long long o = row_of(s, first + t) + at.line;
            dr[o] = by_r + u_i * k_t * e;
            dk[o] = by_k + u_i * r_t * e;
            if (dlog_w) dlog_w[o] = by_w;
        }
    }
    if (!at.leads()) return;
    du[head * kHead + at.line] = du_sum;
    if (dchannel_log_w) dchannel_log_w[head * kHead + at.line] = dw_sum;
}
