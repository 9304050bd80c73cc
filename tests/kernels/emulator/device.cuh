// kernels/device.cuh on a CPU: the same names, their meaning spelled out.
#include "emulator.h"

typedef unsigned char uint8;
typedef unsigned short element;
typedef unsigned int pair;

#ifdef WATCHED  // the compiler reports no store of what a function returns, unless it is inlined
#define DEVICE INLINED
#else
#define DEVICE inline
#endif
#define ALL_LANES 0xffffffffu

inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float widen_fp16(unsigned short x) {
    _Float16 half;
    memcpy(&half, &x, 2);
    return (float)half;
}
inline unsigned short round_to_fp16(float x) {
    _Float16 half = (_Float16)x;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}
inline pair pack_fp16(float first, float second) {
    return round_to_fp16(first) | (pair)round_to_fp16(second) << 16;
}
#ifdef ELEMENT_FP16
inline float widen(element x) { return widen_fp16(x); }
inline element round_to_element(float x) { return round_to_fp16(x); }
#else
inline float widen(element x) { return bits_to_float((uint32_t)x << 16); }
inline element round_to_element(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (element)((bits >> 16) | 0x40);
    return (element)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#endif
inline pair pack(float first, float second) {
    return round_to_element(first) | (pair)round_to_element(second) << 16;
}
inline float low(pair x) { return widen((element)x); }
inline float high(pair x) { return widen((element)(x >> 16)); }

inline pair multiply(pair x, pair y) { return pack(low(x) * low(y), high(x) * high(y)); }

inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal(float x) { return 1.f / x; }
inline float square_root(float x) { return sqrtf(x); }
inline float reciprocal_root(float x) { return 1.f / sqrtf(x); }

inline void mma(float d[4], const pair a[4], const pair b[2]) {
    struct Operands {
        pair a[4], b[2];
    } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    struct Sums {
        float d[4];
    } sums = emulator::among_lanes(mine, [&](auto shown) {
        const int lane = emulator::lane();
        float row[2][16], column[2][16];
        for (int quad = 0; quad < 4; quad++) {
            Operands rows = shown(lane / 4 * 4 + quad);
            for (int half = 0; half < 2; half++)
                for (int part = 0; part < 2; part++) {
                    row[half][part * 8 + quad * 2] = low(rows.a[part * 2 + half]);
                    row[half][part * 8 + quad * 2 + 1] = high(rows.a[part * 2 + half]);
                }
            for (int which = 0; which < 2; which++) {
                Operands columns = shown((lane % 4 * 2 + which) * 4 + quad);
                for (int part = 0; part < 2; part++) {
                    column[which][part * 8 + quad * 2] = low(columns.b[part]);
                    column[which][part * 8 + quad * 2 + 1] = high(columns.b[part]);
                }
            }
        }
        Sums out;
        for (int i = 0; i < 4; i++) {
            out.d[i] = d[i];
            for (int k = 0; k < 16; k++) out.d[i] += row[i / 2][k] * column[i % 2][k];
        }
        return out;
    });
    for (int i = 0; i < 4; i++) d[i] = sums.d[i];
}

inline void mma_half(float d[4], const pair a[2], pair b) {
    const pair whole_a[4] = {a[0], a[1], 0u, 0u}, whole_b[2] = {b, 0u};
    mma(d, whole_a, whole_b);
}

// Each lane reads its row as it arrives: it does not wait for what other lanes still have to write.
template <bool TRANSPOSED>
UNREPORTED inline void load_four(pair to[4], const element *row) {
    struct Row {
        element x[8];
    } mine;
    if ((uintptr_t)row % 16) abort();
    emulator::note_access(row, sizeof mine, false);
    memcpy(mine.x, row, sizeof mine);
    struct Matrices {
        pair m[4];
    } loaded = emulator::among_lanes(mine, [](auto shown) {
        const int lane = emulator::lane(), i = lane / 4, j = lane % 4 * 2;
        Matrices out;
        for (int m = 0; m < 4; m++)
            out.m[m] = TRANSPOSED
                           ? shown(m * 8 + j).x[i] | (pair)shown(m * 8 + j + 1).x[i] << 16
                           : shown(m * 8 + i).x[j] | (pair)shown(m * 8 + i).x[j + 1] << 16;
        return out;
    });
    for (int m = 0; m < 4; m++) to[m] = loaded.m[m];
}
inline void load_matrices(pair to[4], const element *row) { load_four<false>(to, row); }
inline void load_matrices_transposed(pair to[4], const element *row) { load_four<true>(to, row); }

inline pair transpose_matrix(pair x) {
    return emulator::among_lanes(x, [](auto shown) {
        const int lane = emulator::lane(), i = lane / 4, j = lane % 4 * 2;
        auto at = [&](int row, int column) {
            return (element)(shown(row * 4 + column / 2) >> (column % 2 * 16));
        };
        return at(j, i) | (pair)at(j + 1, i) << 16;
    });
}

UNREPORTED inline void copy_async(void *to_shared, const void *from_global, int bytes) {
    if (bytes != 0 && bytes != 16) abort();
    if ((uintptr_t)to_shared % 16 || (uintptr_t)from_global % 16) abort();
    emulator::note_access(to_shared, 16, true);
    if (bytes) emulator::note_access(from_global, bytes, false);
#ifdef COPIES_AT_ONCE  // as an sm_75 does
    memset(to_shared, 0, 16);
    memcpy(to_shared, from_global, bytes);
    return;
#endif
    memset(to_shared, 0xff, 16);
    emulator::current->copies.push_back(
        {to_shared, from_global, bytes, emulator::current->group});
}
inline void copy_async_commit() { emulator::current->group++; }

inline void keep_order() {}
inline int forget(int x) { return x; }

template <typename Shared>
inline Shared &shared_memory() {
    return *(Shared *)emulator::shared;
}
