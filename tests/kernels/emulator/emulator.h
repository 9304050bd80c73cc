// Runs CUDA kernels on a CPU: one fiber a CUDA thread.
//
// One warp at a time runs, in random order, until all its lanes wait at the block barrier or have
// ended: whatever another warp has not written by then is missing, as it can be on a GPU. Lanes of
// a warp run forwards or backwards, and meet at every instruction that exchanges data among them.
// Shared memory starts as NaN.
#pragma once
#include <setjmp.h>
#include <ucontext.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define INLINED inline __attribute__((always_inline))
#define UNREPORTED __attribute__((no_sanitize_thread))  // it calls note_access itself

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3_t {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
INLINED float2 make_float2(float x, float y) { return {x, y}; }
INLINED float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
INLINED uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
INLINED uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

enum class Waits { no, for_block, for_warp, ended };

// A copy that was started and has not landed: the destination is poisoned until it is waited for.
struct Copy {
    void *to;
    const void *from;
    int bytes, group;
};

struct Fiber {
    jmp_buf place;
    bool started;
    Waits waits;
    int thread;
    unsigned char *stack;
    std::vector<Copy> copies;
    int group;
    unsigned barriers, meetings;  // passed by the block; by the warp, or the block
};

struct Launch {
    unsigned grid[3], block;
    unsigned shared_bytes, seed;
    unsigned flush_denormals;
};

constexpr int kStackBytes = 128 * 1024, kWarp = 32, kMaxThreads = 1024;
constexpr int kGuard = 512;  // bytes before and behind shared memory; the tensors have as many

inline Fiber fibers[kMaxThreads];
inline Fiber *current;
inline jmp_buf scheduler;
inline ucontext_t entry_context;
inline uint3_t block_index, block_size, grid_size;
inline const std::function<void()> *kernel;
inline unsigned char *shared;
inline unsigned char exchange[kMaxThreads][64];  // what lanes show each other
inline std::string skipped_file;                 // a barrier taken out, by its place
inline int skipped_line;

// Told to accesses.cpp, where that is part of the program.
inline void (*block_starts)(const Launch &);
inline void (*warp_met)(int warp);
inline void (*accessed)(const void *at, int bytes, bool writes, bool costs);

// Tell of an access; one without costs only matters for races.
inline void note_access(const void *at, int bytes, bool writes, bool costs = true) {
    if (accessed) accessed(at, bytes, writes, costs);
}

inline void wait(Waits reason) {
    current->waits = reason;
    if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
    (*kernel)();
    current->waits = Waits::ended;
    _longjmp(scheduler, 1);
}

inline void resume(Fiber &fiber) {
    current = &fiber;
    fiber.waits = Waits::no;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&entry_context);
    entry_context.uc_stack.ss_sp = fiber.stack;
    entry_context.uc_stack.ss_size = kStackBytes;
    entry_context.uc_link = nullptr;
    makecontext(&entry_context, enter, 0);
    setcontext(&entry_context);
}

inline int lane() { return current->thread % kWarp; }
inline int first_of_warp() { return current->thread - lane(); }
inline void meet_warp() { wait(Waits::for_warp); }

// Show a value to the warp and run `read(show)`, where show(lane) is what that lane showed.
template <typename Value, typename Read>
auto among_lanes(const Value &value, Read read) {
    static_assert(sizeof(Value) <= sizeof(exchange[0]) && std::is_trivially_copyable_v<Value>);
    memcpy(exchange[current->thread], &value, sizeof value);
    meet_warp();
    auto result = read([first = first_of_warp()](int lane) {
        Value shown;
        memcpy(&shown, exchange[first + lane % kWarp], sizeof shown);
        return shown;
    });
    meet_warp();
    return result;
}

// A place in the source where threads wait; the tests can take one out.
struct Place {
    const char *file;
    int line;
    bool skipped() const { return line == skipped_line && skipped_file == file; }
    void barrier() const {
        if (skipped()) return;
        wait(Waits::for_block);
        current->barriers++, current->meetings++;
    }
    void warp_barrier() const {  // unlike an exchange, it orders memory
        if (skipped()) return;
        meet_warp();
        current->meetings++;
    }
    template <int PENDING>
    UNREPORTED void copies() const {
        if (skipped()) return;
        std::vector<Copy> left;
        for (const Copy &copy : current->copies) {
            if (copy.group >= current->group - PENDING) {
                left.push_back(copy);
                continue;
            }
            note_access(copy.to, 16, true, false);
            memset(copy.to, 0, 16);
            memcpy(copy.to, copy.from, copy.bytes);
        }
        current->copies.swap(left);
    }
};

inline void run_block(const Launch &launch, unsigned char *stacks, uint32_t &random) {
    const int threads = launch.block, warps = (threads + kWarp - 1) / kWarp;
    memset(shared, 0xff, launch.shared_bytes);
    if (block_starts) block_starts(launch);
    for (int i = 0; i < threads; i++) {
        fibers[i].started = false;
        fibers[i].waits = Waits::no;
        fibers[i].thread = i;
        fibers[i].copies.clear();
        fibers[i].group = 0;
        fibers[i].barriers = fibers[i].meetings = 0;
        fibers[i].stack = stacks + (size_t)i * kStackBytes;
    }
    std::vector<int> order(warps);
    for (;;) {
        for (int i = 0; i < warps; i++) order[i] = i;
        for (int i = warps - 1; i > 0; i--) {
            random = random * 1664525u + 1013904223u;
            std::swap(order[i], order[(random >> 8) % (i + 1)]);
        }
        int ended = 0, at_barrier = 0;
        for (int warp : order) {
            const int begin = warp * kWarp, end = std::min(threads, begin + kWarp);
            for (bool goes_on = true; goes_on;) {
                int meeting = 0, alive = 0;
                random = random * 1664525u + 1013904223u;
                for (int step = 0; step < end - begin; step++) {
                    const int i = random >> 31 ? begin + step : end - 1 - step;
                    if (fibers[i].waits == Waits::no) resume(fibers[i]);
                    meeting += fibers[i].waits == Waits::for_warp;
                    alive += fibers[i].waits != Waits::ended;
                }
                goes_on = meeting > 0 && meeting == alive;
                if (warp_met) warp_met(warp);
                if (meeting > 0 && meeting < alive) {
                    fprintf(stderr, "emulator: lanes of warp %d wait for each other forever\n", warp);
                    abort();
                }
                for (int i = begin; goes_on && i < end; i++)
                    if (fibers[i].waits == Waits::for_warp) fibers[i].waits = Waits::no;
            }
        }
        for (int i = 0; i < threads; i++) {
            ended += fibers[i].waits == Waits::ended;
            at_barrier += fibers[i].waits == Waits::for_block;
            if (fibers[i].waits == Waits::for_block) fibers[i].waits = Waits::no;
        }
        if (ended == threads) return;
        if (ended + at_barrier != threads) abort();
    }
}

// Count denormals as zero, as kernels compiled with fast math do; returns the mode before.
#if defined(__x86_64__)
inline uint64_t set_float_mode(uint64_t mode) {
    uint64_t before = _mm_getcsr();
    _mm_setcsr((unsigned)mode);
    return before;
}
inline uint64_t flushing_mode() { return _mm_getcsr() | 0x8040; }
#elif defined(__aarch64__)
inline uint64_t set_float_mode(uint64_t mode) {
    uint64_t before;
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" ::"r"(mode));
    return before;
}
inline uint64_t flushing_mode() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode | 1 << 24;
}
#endif

inline void run(const Launch &launch, const std::function<void()> &body) {
    std::vector<unsigned char> stacks((size_t)launch.block * kStackBytes);
    const size_t shared_space = (launch.shared_bytes + 2 * kGuard + 127) / 128 * 128;
    unsigned char *space = (unsigned char *)aligned_alloc(128, shared_space);
    shared = space + kGuard;
    kernel = &body;
    block_size = {launch.block, 1, 1};
    grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
    uint32_t random = launch.seed;
    const uint64_t mode = set_float_mode(flushing_mode());
    if (!launch.flush_denormals) set_float_mode(mode);
    for (unsigned z = 0; z < grid_size.z; z++)
        for (unsigned y = 0; y < grid_size.y; y++)
            for (unsigned x = 0; x < grid_size.x; x++) {
                block_index = {x, y, z};
                run_block(launch, stacks.data(), random);
            }
    set_float_mode(mode);
    free(space);
}

// Call a kernel with arguments behind pointers, as a driver gets them.
template <typename... Parameters, size_t... I>
void apply(void (*function)(Parameters...), void **arguments, std::index_sequence<I...>) {
    function(*(Parameters *)arguments[I]...);
}
template <typename... Parameters>
void launch(void (*function)(Parameters...), const Launch &launch, void **arguments) {
    run(launch, [=] { apply(function, arguments, std::index_sequence_for<Parameters...>()); });
}

// The parameters of a kernel: "i", "f", or "p" and the bytes of what is pointed to.
template <typename Parameter>
std::string kind() {
    if constexpr (std::is_pointer_v<Parameter>)
        return "p" + std::to_string(sizeof(std::remove_pointer_t<Parameter>));
    else if constexpr (std::is_same_v<Parameter, float>)
        return "f";
    else {
        static_assert(std::is_same_v<Parameter, int>, "kernels take pointers, int and float");
        return "i";
    }
}
template <typename... Parameters>
std::string signature(void (*)(Parameters...)) {
    std::string all;
    ((all += kind<Parameters>() + " "), ...);
    return all;
}

}  // namespace emulator

#define threadIdx \
    (uint3_t{(unsigned)emulator::current->thread, 0u, 0u})
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define __syncthreads() emulator::Place{__FILE__, __LINE__}.barrier()
#define __syncwarp() emulator::Place{__FILE__, __LINE__}.warp_barrier()
#define copy_async_wait emulator::Place{__FILE__, __LINE__}.copies

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
    return emulator::among_lanes(value, [=](auto shown) { return (T)shown(source & 31); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return __shfl_sync(mask, value, emulator::lane() ^ distance);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    return emulator::among_lanes(predicate, [](auto shown) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; lane++) votes |= (shown(lane) ? 1u : 0u) << lane;
        return votes;
    });
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return __builtin_clz(x); }
