// Notes every access to shared memory and to the tensors, which the compiler reports here when a
// kernel is built with -fsanitize=thread, unoptimized: an access is then one of the source's. Finds
// races by the rules of CUDA's memory model, accesses outside of a tensor or not aligned to their
// size, and what a warp's access costs: passes through the banks of shared memory, or sectors of
// global memory.
#include <dlfcn.h>

#include <map>
#include <set>

#include "emulator.h"

namespace {

constexpr int kFrames = 8;  // callers of an access that are kept
constexpr int kSector = 32, kBanks = 32;

using Site = std::vector<uintptr_t>;  // return addresses, the innermost first

struct Stamp {
    int block = -1, thread = 0;
    unsigned barriers = 0, meetings = 0, site = 0;
    bool several = false, blocks = false;  // read by more threads of the warp; by more blocks
};
struct Byte {
    Stamp written;
    std::vector<Stamp> read;  // by warp
};
struct Region {
    uintptr_t begin, end;
    std::vector<Byte> bytes;
    std::vector<unsigned char> before;  // its content
};
struct Request {
    int lane, bytes;
    uintptr_t address;
};
struct Cost {
    long requests = 0, passes = 0, least = 0;
};

bool watching;
int block_number;
std::vector<Region> tensors;
Region shared;
std::vector<Site> sites;
std::map<Site, unsigned> known;
std::map<std::pair<unsigned, int>, int> repeats;  // by site and thread, since the warp last met
std::map<int, std::map<std::pair<unsigned, int>, std::vector<Request>>> open;  // by warp
std::map<unsigned, Cost> in_shared, in_global;
std::set<std::pair<unsigned, unsigned>> races;
std::set<unsigned> outside, misaligned;

unsigned site_here(void **frame, uintptr_t at) {
    Site site{at};
    const auto *stack = emulator::current->stack;
    auto inside = [&](void **x) {
        return (unsigned char *)x >= stack && (unsigned char *)x < stack + emulator::kStackBytes - 16;
    };
    for (frame = (void **)frame[0]; inside(frame) && site.size() < kFrames; frame = (void **)frame[0])
        site.push_back((uintptr_t)frame[1]);
    const auto [place, is_new] = known.try_emplace(site, sites.size());
    if (is_new) sites.push_back(site);
    return place->second;
}

bool ordered(const Stamp &before, const Stamp &now) {
    if (before.block < 0) return true;
    if (before.block != now.block) return false;
    if (before.barriers < now.barriers) return true;
    const bool same_warp = before.thread / emulator::kWarp == now.thread / emulator::kWarp;
    return same_warp && before.meetings < now.meetings;
}

void check(Byte &byte, const Stamp &now, bool writes) {
    const int warp = now.thread / emulator::kWarp;
    if (byte.written.thread != now.thread || byte.written.block != now.block)
        if (!ordered(byte.written, now)) races.insert({byte.written.site, now.site});
    if (writes) {
        for (const Stamp &read : byte.read) {
            const bool mine = read.thread == now.thread && read.block == now.block;
            if (read.blocks || ((!mine || read.several) && !ordered(read, now)))
                races.insert({read.site, now.site});
        }
        byte.written = now;
        return;
    }
    if ((int)byte.read.size() <= warp) byte.read.resize(warp + 1);
    Stamp &read = byte.read[warp];
    const Stamp before = read;
    read = now;
    if (before.block < 0) return;
    read.blocks = before.blocks || before.block != now.block;
    const bool at_once = before.block == now.block && before.meetings == now.meetings;
    read.several = at_once && (before.several || before.thread != now.thread);
}

void note(uintptr_t address, int bytes, bool writes, void **frame, uintptr_t at,
          bool costs = true) {
    if (!watching || !emulator::current) return;
    Region *region = nullptr;
    auto near = [=](Region &x) {
        return address + emulator::kGuard >= x.begin && address < x.end + emulator::kGuard;
    };
    if (near(shared)) region = &shared;
    for (Region &tensor : tensors)
        if (near(tensor)) region = &tensor;
    if (!region) return;
    const emulator::Fiber &fiber = *emulator::current;
    const unsigned site = site_here(frame, at) * 2 + writes;
    if (address < region->begin || address + bytes > region->end) {
        outside.insert(site);
        return;
    }
    if (bytes <= 16 && !(bytes & (bytes - 1)) && address % bytes) misaligned.insert(site);
    Stamp now{block_number, fiber.thread, fiber.barriers, fiber.meetings, site};
    for (int i = 0; i < bytes; i++) check(region->bytes[address - region->begin + i], now, writes);
    if (!costs) return;
    const int repeat = repeats[{site, fiber.thread}]++;
    open[fiber.thread / emulator::kWarp][{site, repeat}].push_back(
        {fiber.thread % emulator::kWarp, bytes, address});
}

// Passes through the banks: a pass serves one word of each bank, for any number of lanes. Accesses of
// 8 bytes are served by half warps, of 16 bytes by quarters.
void count_shared(const std::vector<Request> &requests, Cost &cost) {
    const int lanes = requests[0].bytes <= 4 ? 32 : 128 / requests[0].bytes;
    cost.requests++;
    for (int first = 0; first < 32; first += lanes) {
        std::set<uintptr_t> words;
        for (const Request &request : requests)
            if (request.lane >= first && request.lane < first + lanes)
                for (uintptr_t x = request.address / 4;
                     x <= (request.address + request.bytes - 1) / 4; x++)
                    words.insert(x);
        int banks[kBanks] = {}, most = 0;
        for (uintptr_t word : words) most = std::max(most, ++banks[word % kBanks]);
        cost.passes += most;
        cost.least += (words.size() + kBanks - 1) / kBanks;
    }
}
void count_global(const std::vector<Request> &requests, Cost &cost) {
    cost.requests++;
    std::set<uintptr_t> sectors, units;
    for (const Request &request : requests)
        for (int i = 0; i < request.bytes; i++) {
            units.insert(request.address + i);
            sectors.insert((request.address + i) / kSector);
        }
    cost.passes += sectors.size();
    cost.least += (units.size() + kSector - 1) / kSector;
}

void warp_met(int warp) {
    for (const auto &[key, requests] : open[warp]) {
        const uintptr_t x = requests[0].address;
        if (x >= shared.begin && x < shared.end)
            count_shared(requests, in_shared[key.first]);
        else
            count_global(requests, in_global[key.first]);
    }
    open[warp].clear();
    const int first = warp * emulator::kWarp;
    for (auto x = repeats.begin(); x != repeats.end();) {
        const int thread = x->first.second;
        x = thread >= first && thread < first + emulator::kWarp ? repeats.erase(x) : std::next(x);
    }
}

Region make_region(uintptr_t begin, uintptr_t end) {
    return {begin, end, std::vector<Byte>(end - begin),
            {(unsigned char *)begin, (unsigned char *)end}};
}

// Whether a byte changed without a write that was noted.
bool changed_unseen(const Region &region) {
    for (size_t i = 0; i < region.bytes.size(); i++)
        if (((unsigned char *)region.begin)[i] != region.before[i] && region.bytes[i].written.block < 0)
            return true;
    return false;
}

void block_starts(const emulator::Launch &launch) {
    block_number++;
    const auto begin = (uintptr_t)emulator::shared;
    shared = make_region(begin, begin + launch.shared_bytes);
}

void print(FILE *to, const char *kind, unsigned site, const Cost &cost) {
    fprintf(to, "%s %s %ld %ld %ld", kind, site % 2 ? "write" : "read", cost.requests, cost.passes,
            cost.least);
    Dl_info library;
    for (uintptr_t at : sites[site / 2]) {
        dladdr((void *)at, &library);
        fprintf(to, " %lx", (unsigned long)(at - 1 - (uintptr_t)library.dli_fbase));
    }
    fputc('\n', to);
}

#define HERE (void **)__builtin_frame_address(0), (uintptr_t)__builtin_return_address(0)

void accessed(const void *x, int bytes, bool writes, bool costs) {
    note((uintptr_t)x, bytes, writes, HERE, costs);
}

}  // namespace

// Watch the next launch; the tensors lie at begins[i] .. ends[i] - 1.
extern "C" void watch(int count, const uintptr_t *begins, const uintptr_t *ends) {
    tensors.clear(), known.clear(), sites.clear();
    races.clear(), outside.clear(), misaligned.clear();
    in_shared.clear(), in_global.clear(), open.clear(), repeats.clear();
    for (int i = 0; i < count; i++) tensors.push_back(make_region(begins[i], ends[i]));
    block_number = -1;
    emulator::block_starts = block_starts;
    emulator::warp_met = warp_met;
    emulator::accessed = accessed;
    watching = true;
}
// Write what was seen, a line a place of accesses; of a race, two.
extern "C" void report(const char *path) {
    watching = false;
    FILE *to = fopen(path, "w");
    for (const Region &tensor : tensors)
        if (changed_unseen(tensor)) fprintf(to, "unseen - 0 0 0\n");
    for (const auto &[first, second] : races) {
        print(to, "race", first, {});
        print(to, "race", second, {});
    }
    for (unsigned site : outside) print(to, "outside", site, {});
    for (unsigned site : misaligned) print(to, "misaligned", site, {});
    for (const auto &[site, cost] : in_shared) print(to, "shared", site, cost);
    for (const auto &[site, cost] : in_global) print(to, "global", site, cost);
    fclose(to);
}

#define ACCESS(bytes)                                                                     \
    void __tsan_read##bytes(void *x) { note((uintptr_t)x, bytes, false, HERE); }          \
    void __tsan_write##bytes(void *x) { note((uintptr_t)x, bytes, true, HERE); }          \
    void __tsan_unaligned_read##bytes(void *x) { note((uintptr_t)x, bytes, false, HERE); } \
    void __tsan_unaligned_write##bytes(void *x) { note((uintptr_t)x, bytes, true, HERE); }
extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *x, size_t bytes) { note((uintptr_t)x, bytes, false, HERE); }
void __tsan_write_range(void *x, size_t bytes) { note((uintptr_t)x, bytes, true, HERE); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
unsigned char __tsan_atomic8_load(const unsigned char *x, int) { return *x; }
}
