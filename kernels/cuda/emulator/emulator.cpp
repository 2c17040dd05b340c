#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

namespace emulator {

namespace {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;
// What one lane leaves for the others.
constexpr size_t LEFT = 64;
// What an argument may reach: nothing, for it is a number; all of the allocation from there on.
constexpr size_t NUMBER = SIZE_MAX, ALL = SIZE_MAX - 1;
// Threads that multiply together, and how many sums each has of 64 x 128.
constexpr int WARPGROUP = 4 * WARP, SUMS = 64;
// Bytes that nobody has written: no number, in every format.
constexpr unsigned char POISON = 0xff;

// Who did something, and when: between two moments of two threads there may be a barrier of the block or of the warp.
struct Moment {
    uint32_t thread = 0;
    uint32_t block = 0;
    uint32_t barriers = 0;
    uint32_t warp_syncs = 0;
};

// What is known of a few bytes: whether they hold anything, and who wrote them and read them last in that launch.
struct Shadow {
    uint32_t launch = 0;
    Moment writer, reader;
    bool written = false;
    bool was_written = false, by_atomic = false;
    // Its number among all that was written in that block, and products under way that read it.
    uint32_t turn = 0;
    uint16_t multiplied = 0;
    // Since it was written: whether it was read; by threads, warps or blocks between which nothing was.
    bool was_read = false, by_threads = false, by_warps = false, by_blocks = false;
};

enum class State { Ready, AtBarrier, AtMeeting, Done };

struct Copy {
    unsigned char* to;
    Region* region;
    unsigned char bytes[16];
};

// When a thread has made what it wrote visible to tensor cores: all before that turn, for those behind a later barrier.
struct Fence {
    uint32_t turn, barriers;
};

struct Product {
    float* sums;
    Factor a, b;
};

// Sums that a product under way adds to: here they are, and where they were is what becomes another one when it is computed
// with (a signalling NaN).
constexpr uint32_t HELD = 0xffbfffffu;
struct Held {
    float* sums;
    float values[SUMS];
};

struct Fiber {
    void* stack_top;
    uint3 index;
    uint32_t number;
    State state;
    const char* meeting;
    uint32_t warp_syncs;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> committed;
    std::vector<Fence> fences;
    bool sums_fenced;
    uint32_t products;
    std::vector<Product> open_products;
    std::vector<std::vector<Product>> committed_products;
    std::vector<Held> held;
};

}  // namespace

// `shadow` has one entry for each `grain` bytes: what is written a float at a time is not looked at byte by byte. Without one
// only the bounds are looked at.
struct Region {
    unsigned char* base;
    size_t bytes;
    const char* kind;
    size_t grain;
    Shadow* shadow;
};

struct Owned {
    Region region;
    std::vector<Shadow> shadow;

    Owned(void* base, size_t bytes, const char* kind, size_t grain)
        : region{static_cast<unsigned char*>(base), bytes, kind, grain, nullptr}, shadow((bytes + grain - 1) / grain) {
        region.shadow = shadow.data();
    }
};

namespace {

struct Launch {
    const char* kernel;
    dim3 grid, block;
    uint3 block_at{};
    uint32_t block_number = 0;
    uint32_t barriers = 0;
    uint32_t turns = 0;
    std::vector<Fiber> fibers;
    std::vector<unsigned char> left;
    Fiber* current = nullptr;
    void* main_stack = nullptr;
    Entry entry = nullptr;
    void* const* arguments = nullptr;
    std::vector<Region> windows;
    std::vector<std::pair<const void*, std::unique_ptr<Owned>>> carved;
    std::vector<std::unique_ptr<unsigned char[], void (*)(void*)>> carved_memory;
    size_t dynamic_bytes = 0;
    std::string failure;
};

thread_local Launch* launch = nullptr;
thread_local std::map<uintptr_t, std::unique_ptr<Owned>> allocations;
// Launches of this thread so far: what a shadow knows of an earlier one is over.
thread_local uint32_t launches = 0;

struct Known {
    Entry entry;
    std::string arguments;
};

std::map<std::string, Known>& kernels() {
    static std::map<std::string, Known> all;
    return all;
}

Moment now() {
    return {launch->current->number, launch->block_number, launch->barriers, launch->current->warp_syncs};
}

// Whether something that happened then has certainly happened before now.
bool before(const Moment& then, const Moment& now) {
    if (then.block != now.block) return false;
    if (then.thread == now.thread || then.barriers < now.barriers) return true;
    return then.thread / WARP == now.thread / WARP && then.warp_syncs < now.warp_syncs;
}

uint32_t warp_of(const Moment& moment) { return moment.thread / WARP; }

void note_read(Shadow& shadow, const Moment& now) {
    const Moment& last = shadow.reader;
    bool same_block = shadow.was_read && last.block == now.block;
    bool same_time = same_block && last.barriers == now.barriers;
    bool same_warp = same_time && warp_of(last) == warp_of(now);
    shadow.by_blocks |= shadow.was_read && !same_block;
    shadow.by_warps = same_time && (shadow.by_warps || !same_warp);
    shadow.by_threads = same_warp && last.warp_syncs == now.warp_syncs && (shadow.by_threads || last.thread != now.thread);
    shadow.reader = now;
    shadow.was_read = true;
}

// Whether all that read have certainly read before now.
bool all_before(const Shadow& shadow, const Moment& now) {
    const Moment& last = shadow.reader;
    if (shadow.by_blocks || last.block != now.block) return false;
    if (last.barriers < now.barriers) return true;
    if (shadow.by_warps || warp_of(last) != warp_of(now)) return false;
    return last.warp_syncs < now.warp_syncs || (!shadow.by_threads && last.thread == now.thread);
}

std::string place(const Region* region, const void* at, size_t bytes) {
    char text[160];
    auto offset = static_cast<const unsigned char*>(at) - region->base;
    std::snprintf(text, sizeof(text), "%zu bytes at byte %td of %zu of %s memory", bytes, offset, region->bytes, region->kind);
    return text;
}

extern "C" void emulator_switch(void** save, void* to);
__asm__(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

void leave(State state) {
    Fiber* fiber = launch->current;
    fiber->state = state;
    emulator_switch(&fiber->stack_top, launch->main_stack);
}

void begin() {
    launch->entry(launch->arguments);
    if (!launch->current->held.empty()) fail("its end comes while wgmma goes on");
    leave(State::Done);
    std::abort();
}

void* aligned(size_t bytes) { return std::aligned_alloc(1024, (std::max<size_t>(bytes, 1) + 1023) / 1024 * 1024); }

void clear_shared() {
    for (auto& [site, owned] : launch->carved) {
        std::memset(owned->region.base, POISON, owned->region.bytes);
        std::fill(owned->shadow.begin(), owned->shadow.end(), Shadow{});
    }
}

void prepare(Fiber& fiber, uint32_t number, unsigned char* stack) {
    const dim3& size = launch->block;
    fiber = {};
    fiber.number = number;
    fiber.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
    auto top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(begin);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_top = top;
}

// Lets those go on that everybody has come to whom they wait for; false where nobody can.
bool release() {
    auto& fibers = launch->fibers;
    auto is = [](State state) { return [state](const Fiber& fiber) { return fiber.state == state; }; };
    auto at_rest = [](const Fiber& fiber) { return fiber.state == State::AtBarrier || fiber.state == State::Done; };
    if (std::all_of(fibers.begin(), fibers.end(), at_rest)) {
        launch->barriers++;
        for (size_t i = 0; i < fibers.size(); i++) {
            if (fibers[i].products != fibers[i / WARPGROUP * WARPGROUP].products) {
                launch->failure = "the warps of a warpgroup multiply a different number of times";
                return false;
            }
        }
        for (auto& fiber : fibers) {
            if (fiber.state == State::AtBarrier) fiber.state = State::Ready;
        }
        return true;
    }
    bool released = false;
    for (size_t first = 0; first < fibers.size(); first += WARP) {
        auto begin = fibers.begin() + first, end = begin + WARP;
        if (!std::all_of(begin, end, is(State::AtMeeting))) continue;
        auto same = [&](const Fiber& fiber) { return std::strcmp(fiber.meeting, begin->meeting) == 0; };
        if (!std::all_of(begin, end, same)) {
            launch->failure = std::string("threads of a warp meet for different things: ") + begin->meeting + " and others";
            return false;
        }
        bool orders = std::strcmp(begin->meeting, "sync_warp") == 0;
        for (auto fiber = begin; fiber != end; ++fiber) {
            fiber->state = State::Ready;
            fiber->warp_syncs += orders;
        }
        released = true;
    }
    return released;
}

std::string standing() {
    int barrier = 0, meeting = 0, done = 0;
    const char* what = "";
    for (auto& fiber : launch->fibers) {
        barrier += fiber.state == State::AtBarrier;
        done += fiber.state == State::Done;
        if (fiber.state == State::AtMeeting) {
            meeting++;
            what = fiber.meeting;
        }
    }
    char text[200];
    std::snprintf(text, sizeof(text), "threads wait for each other for ever: %d at sync_block, %d at %s, %d at their end", barrier,
                  meeting, meeting ? what : "no operation of a warp", done);
    return text;
}

// Any order of threads must give the same; another seed gives another one.
std::vector<uint32_t> order(uint32_t count, uint64_t seed) {
    std::vector<uint32_t> all(count);
    for (uint32_t i = 0; i < count; i++) all[i] = i;
    if (seed == 0) return all;
    for (uint32_t i = count; i > 1; i--) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(all[i - 1], all[(seed >> 33) % i]);
    }
    return all;
}

void run_block(const std::vector<uint32_t>& turns, unsigned char* stacks) {
    auto& fibers = launch->fibers;
    for (uint32_t i = 0; i < fibers.size(); i++) prepare(fibers[i], i, stacks + size_t(i) * STACK);
    clear_shared();
    launch->barriers = 0;
    auto done = [](const Fiber& fiber) { return fiber.state == State::Done; };
    while (launch->failure.empty()) {
        for (uint32_t turn : turns) {
            Fiber& fiber = fibers[turn];
            if (fiber.state != State::Ready) continue;
            launch->current = &fiber;
            emulator_switch(&launch->main_stack, fiber.stack_top);
            if (!launch->failure.empty()) return;
        }
        if (std::all_of(fibers.begin(), fibers.end(), done)) return;
        if (!release() && launch->failure.empty()) launch->failure = standing();
    }
}

// The allocation that holds the address, or ends there.
Owned* holder(const void* at) {
    auto after = allocations.upper_bound(reinterpret_cast<uintptr_t>(at));
    if (after == allocations.begin()) return nullptr;
    Owned* owned = std::prev(after)->second.get();
    auto offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - owned->region.base);
    return offset <= owned->region.bytes ? owned : nullptr;
}

// What each argument may reach; an empty message if all of it is allocated.
std::string open_windows(void* const* arguments, const size_t* bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        Region window{nullptr, 0, "no", 1, nullptr};
        if (bytes[i] != NUMBER && bytes[i] != 0) {
            auto at = *static_cast<unsigned char**>(arguments[i]);
            Owned* owned = holder(at);
            if (!owned) return "an argument that nobody has allocated";
            const Region& whole = owned->region;
            size_t offset = static_cast<size_t>(at - whole.base);
            if (bytes[i] != ALL && offset + bytes[i] > whole.bytes) return "an argument that ends beyond its allocation";
            size_t reach = bytes[i] == ALL ? whole.bytes - offset : bytes[i];
            window = {at, reach, "global", whole.grain, whole.shadow ? whole.shadow + offset / whole.grain : nullptr};
        }
        launch->windows.push_back(window);
    }
    return "";
}

std::string run(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes, const char* signature,
                void* const* arguments, const size_t* bytes, size_t count, uint64_t seed) {
    auto found = kernels().find(kernel);
    if (found == kernels().end()) return std::string(kernel) + ": there is no such kernel";
    if (found->second.arguments != signature) {
        return std::string(kernel) + ": it takes (" + found->second.arguments + "), and the host says (" + signature + ")";
    }
    uint32_t threads = block[0] * block[1] * block[2];
    if (threads == 0 || threads % WARP != 0 || threads > 1024) return "a block has 32 to 1024 threads, in whole warps";
    Launch own;
    launch = &own;
    own.kernel = kernel;
    own.grid = {grid[0], grid[1], grid[2]};
    own.block = {block[0], block[1], block[2]};
    own.entry = found->second.entry;
    own.arguments = arguments;
    own.failure = open_windows(arguments, bytes, count);
    if (!own.failure.empty()) {
        launch = nullptr;
        return std::string(kernel) + ": " + own.failure;
    }
    own.fibers.resize(threads);
    own.left.assign(size_t(threads) * LEFT, POISON);
    own.dynamic_bytes = shared_bytes;
    launches++;
    std::unique_ptr<unsigned char, void (*)(void*)> stacks(static_cast<unsigned char*>(std::malloc(threads * STACK)), std::free);
    uint32_t blocks = grid[0] * grid[1] * grid[2];
    auto turns = order(threads, seed);
    for (uint32_t number : order(blocks, seed)) {
        own.block_number = number;
        own.block_at = {number % grid[0], number / grid[0] % grid[1], number / (grid[0] * grid[1])};
        run_block(turns, stacks.get());
        if (!own.failure.empty()) break;
    }
    launch = nullptr;
    return own.failure;
}

}  // namespace

Registered::Registered(const char* name, Entry entry, const std::string& arguments) { kernels()[name] = {entry, arguments}; }

void fail(const std::string& why) {
    const uint3 block = launch->block_at, thread = launch->current->index;
    char text[160];
    std::snprintf(text, sizeof(text), "%s, block (%u, %u, %u), thread (%u, %u, %u): ", launch->kernel, block.x, block.y, block.z,
                  thread.x, thread.y, thread.z);
    launch->failure = text + why;
    leave(State::Done);
    std::abort();
}

Region* window(int argument) { return &launch->windows[size_t(argument)]; }

Region* find(const void* at) {
    Owned* owned = holder(at);
    if (!owned) fail("an address that nobody has allocated");
    return &owned->region;
}

void touch(Region* region, const void* at, size_t bytes, Access access) {
    if (!region || !region->base) fail("memory that is not there");
    auto address = static_cast<const unsigned char*>(at);
    if (address < region->base || address + bytes > region->base + region->bytes) {
        fail("out of bounds: " + place(region, at, bytes));
    }
    // Part of an asynchronous copy's 16 bytes may be any number of them; that it begins right is seen there.
    bool whole = (bytes & (bytes - 1)) == 0;
    if (whole && reinterpret_cast<uintptr_t>(at) % std::min<size_t>(bytes, 16) != 0) {
        fail("misaligned: " + place(region, at, bytes));
    }
    if (!region->shadow) return;
    launch->turns++;
    Moment moment = now();
    size_t first = size_t(address - region->base) / region->grain;
    size_t last = size_t(address - region->base + bytes - 1) / region->grain;
    for (Shadow* shadow = region->shadow + first; shadow <= region->shadow + last; shadow++) {
        if (access != Access::Write && !shadow->written) fail("a read of what nobody has written: " + place(region, at, bytes));
        if (shadow->launch != launches) {
            bool written = shadow->written;
            *shadow = {};
            shadow->written = written;
            shadow->launch = launches;
        }
        bool both_atomic = access == Access::Atomic && shadow->by_atomic;
        if (shadow->was_written && !both_atomic && !before(shadow->writer, moment)) {
            fail("another thread has written there, and nothing is between: " + place(region, at, bytes));
        }
        if (access == Access::Read) {
            note_read(*shadow, moment);
            continue;
        }
        if (shadow->multiplied > 0) fail("wgmma is reading there: " + place(region, at, bytes));
        if (shadow->was_read && !both_atomic && !all_before(*shadow, moment)) {
            fail("another thread has read there, and nothing is between: " + place(region, at, bytes));
        }
        *shadow = {};
        shadow->launch = launches;
        shadow->writer = moment;
        shadow->turn = launch->turns;
        shadow->written = shadow->was_written = true;
        shadow->by_atomic = access == Access::Atomic;
    }
}

const std::string* signature(const char* kernel) {
    auto found = kernels().find(kernel);
    return found == kernels().end() ? nullptr : &found->second.arguments;
}

// What the emulated driver calls: memory without a shadow, and launches that may reach all of it.
void add_unchecked(void* base, size_t bytes) {
    auto owned = std::make_unique<Owned>(base, 0, "global", 1);
    owned->region.bytes = bytes;
    owned->region.shadow = nullptr;
    allocations[reinterpret_cast<uintptr_t>(base)] = std::move(owned);
}

std::string launch_unchecked(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                             void* const* arguments, size_t count) {
    const std::string& types = *signature(kernel);
    std::vector<size_t> reach(count, NUMBER);
    for (size_t i = 0, at = 0; i < count; i++) {
        size_t end = std::min(types.find(", ", at), types.size());
        bool memory = types[end - 1] == '*';
        if (memory) reach[i] = *static_cast<void* const*>(arguments[i]) ? ALL : 0;
        at = end + 2;
    }
    return run(kernel, grid, block, shared_bytes, types.c_str(), arguments, reach.data(), count, 0);
}

void* carve(const void* site, size_t bytes, Region** found) {
    for (auto& [known, owned] : launch->carved) {
        if (known == site) {
            *found = &owned->region;
            return owned->region.base;
        }
    }
    launch->carved_memory.emplace_back(static_cast<unsigned char*>(aligned(bytes)), std::free);
    auto base = launch->carved_memory.back().get();
    std::memset(base, POISON, bytes);
    launch->carved.emplace_back(site, std::make_unique<Owned>(base, bytes, "shared", 1));
    *found = &launch->carved.back().second->region;
    return base;
}

void* dynamic(Region** found) {
    static const char site = 0;
    return carve(&site, launch->dynamic_bytes, found);
}

uint3 thread_index() { return launch->current->index; }
uint3 block_index() { return launch->block_at; }
dim3 block_size() { return launch->block; }
dim3 grid_size() { return launch->grid; }
int lane() { return int(launch->current->number % WARP); }

void barrier() { leave(State::AtBarrier); }

const unsigned char* meet(const char* what, const void* own, size_t bytes) {
    if (bytes > LEFT) fail("an operation of a warp moves too much");
    Fiber* fiber = launch->current;
    if (bytes > 0) std::memcpy(&launch->left[fiber->number * LEFT], own, bytes);
    fiber->meeting = what;
    leave(State::AtMeeting);
    return &launch->left[fiber->number / WARP * WARP * LEFT];
}

void part() {
    launch->current->meeting = "the end of it";
    leave(State::AtMeeting);
}

const unsigned char* of_lane(const unsigned char* left, int lane) { return left + size_t(lane) * LEFT; }

void copy_later(void* to, Region* region, const unsigned char* bytes) {
    touch(region, to, 16, Access::Write);
    std::memset(to, POISON, 16);
    auto base = static_cast<unsigned char*>(to);
    for (int i = 0; i < 16; i++) region->shadow[base - region->base + i].written = false;
    Copy copy{base, region, {}};
    std::memcpy(copy.bytes, bytes, 16);
    launch->current->open.push_back(copy);
}

void commit_copies() {
    launch->current->committed.push_back(std::move(launch->current->open));
    launch->current->open.clear();
}

void wait_for_copies(int groups) {
    auto& committed = launch->current->committed;
    launch->turns++;
    while (committed.size() > size_t(groups)) {
        for (auto& copy : committed.front()) {
            std::memcpy(copy.to, copy.bytes, 16);
            for (int i = 0; i < 16; i++) {
                Shadow& shadow = copy.region->shadow[copy.to - copy.region->base + i];
                shadow.written = shadow.was_written = true;
                shadow.writer = now();
                shadow.turn = launch->turns;
            }
        }
        committed.erase(committed.begin());
    }
}

// As the hardware finds it: rows of 128 bytes, 8 of them behind each other, and the bits of an address that count chunks of 16
// bytes changed by those that count rows.
const unsigned char* Factor::place(int outer, int k) const {
    int row = distance ? k : outer, column = distance ? outer % 64 : k, before = distance ? outer / 64 * distance : 0;
    uintptr_t linear = reinterpret_cast<uintptr_t>(at) + uintptr_t(before + row * 128 + column * 2);
    return reinterpret_cast<const unsigned char*>(linear ^ (linear >> 7 & 7) << 4);
}

void fence_for_tensor_cores() { launch->current->fences.push_back({launch->turns, launch->barriers}); }

void fence_sums() {
    meet("wgmma_fence", nullptr, 0);
    part();
    launch->current->sums_fenced = true;
}

namespace {

// Calls `body` for this lane's share of the 16-byte chunks that its warp reads: its own 16 rows of A, all columns of B.
template <class Body> void each_chunk(const Product& product, const Body& body) {
    int warp = int(launch->current->number % WARPGROUP) / WARP;
    for (int i = lane(); i < 16 * 2; i += WARP) body(product.a, product.a.place(16 * warp + i / 2, i % 2 * 8));
    for (int i = lane(); i < 128 * 2; i += WARP) {
        bool across = product.b.distance != 0;
        body(product.b, across ? product.b.place(i % 16 * 8, i / 16) : product.b.place(i / 2, i % 2 * 8));
    }
}

// Whether tensor cores see what is there: the thread that wrote it has fenced since, before a barrier.
bool fenced(const Shadow& shadow) {
    const auto& fences = launch->fibers[shadow.writer.thread].fences;
    auto earlier = [](const Fence& fence, uint32_t turn) { return fence.turn < turn; };
    auto fence = std::lower_bound(fences.begin(), fences.end(), shadow.turn, earlier);
    if (fence == fences.end()) return false;
    return fence->barriers < launch->barriers || shadow.writer.thread == launch->current->number;
}

void check_factor(const Factor& factor) {
    auto at = reinterpret_cast<uintptr_t>(factor.at);
    bool whole = factor.distance ? at % 1024 == 0 && factor.distance % 1024 == 0 : (at & 0x380) == 0 && at % 128 % 32 == 0;
    if (!whole) fail("wgmma: an operand does not begin where its swizzle does");
}

void add_product(const Product& product, float* sums) {
    int warp = int(launch->current->number % WARPGROUP) / WARP, group = lane() / 4, place = lane() % 4;
    auto value = [](const Factor& factor, int outer, int k) {
        bf16 found;
        std::memcpy(&found, factor.place(outer, k), 2);
        return to_float(found);
    };
    float a[2][16];
    for (int i = 0; i < 32; i++) a[i / 16][i % 16] = value(product.a, 16 * warp + group + 8 * (i / 16), i % 16);
    for (int j = 0; j < 16; j++) {
        for (int i = 0; i < 2; i++) {
            for (int k = 0; k < 16; k++) {
                float b = value(product.b, 8 * j + 2 * place + i, k);
                for (int half = 0; half < 2; half++) sums[4 * j + 2 * half + i] += a[half][k] * b;
            }
        }
    }
}

}  // namespace

void multiply_later(float* sums, const Factor& a, const Factor& b) {
    Fiber* fiber = launch->current;
    if (launch->fibers.size() % WARPGROUP != 0) fail("wgmma: a block has whole warpgroups");
    if (!fiber->sums_fenced) fail("wgmma: there was no wgmma_fence before it");
    meet("wgmma", nullptr, 0);
    part();
    check_factor(a);
    check_factor(b);
    Product product{sums, a, b};
    each_chunk(product, [&](const Factor& factor, const unsigned char* at) {
        touch(factor.region, at, 16, Access::Read);
        for (int i = 0; i < 16; i++) {
            Shadow& shadow = factor.region->shadow[at - factor.region->base + i];
            if (!fenced(shadow)) fail("wgmma does not see what was written, for lack of a fence: " + place(factor.region, at, 16));
            shadow.multiplied++;
        }
    });
    auto same = [&](const Held& held) { return held.sums == sums; };
    if (std::none_of(fiber->held.begin(), fiber->held.end(), same)) {
        fiber->held.push_back({sums, {}});
        std::memcpy(fiber->held.back().values, sums, sizeof(Held::values));
        for (int i = 0; i < SUMS; i++) std::memcpy(sums + i, &HELD, 4);
    }
    fiber->open_products.push_back(product);
    fiber->products++;
}

void commit_products() {
    Fiber* fiber = launch->current;
    fiber->committed_products.push_back(std::move(fiber->open_products));
    fiber->open_products.clear();
    fiber->sums_fenced = false;
}

void wait_for_products(int groups) {
    Fiber* fiber = launch->current;
    auto& committed = fiber->committed_products;
    meet("wgmma_wait", nullptr, 0);
    part();
    while (committed.size() > size_t(groups)) {
        for (const Product& product : committed.front()) {
            auto same = [&](const Held& held) { return held.sums == product.sums; };
            add_product(product, std::find_if(fiber->held.begin(), fiber->held.end(), same)->values);
        }
        // All lanes have read.
        meet("wgmma_wait", nullptr, 0);
        part();
        for (const Product& product : committed.front()) {
            each_chunk(product, [&](const Factor& factor, const unsigned char* at) {
                for (int i = 0; i < 16; i++) {
                    Shadow& shadow = factor.region->shadow[at - factor.region->base + i];
                    shadow.multiplied--;
                    note_read(shadow, now());
                }
            });
        }
        committed.erase(committed.begin());
    }
    auto under_way = [&](const Held& held) {
        auto adds = [&](const Product& product) { return product.sums == held.sums; };
        auto in = [&](const std::vector<Product>& group) { return std::any_of(group.begin(), group.end(), adds); };
        return in(fiber->open_products) || std::any_of(committed.begin(), committed.end(), in);
    };
    auto done = std::partition(fiber->held.begin(), fiber->held.end(), under_way);
    for (auto held = done; held != fiber->held.end(); ++held) {
        auto untouched = [](const float& sum) { return std::memcmp(&sum, &HELD, 4) == 0; };
        if (!std::all_of(held->sums, held->sums + SUMS, untouched)) fail("sums were written while wgmma adds to them");
        std::memcpy(held->sums, held->values, sizeof(held->values));
    }
    fiber->held.erase(done, fiber->held.end());
}

}  // namespace emulator

// What the host calls. The memory stays the caller's, which writes and reads it a `grain` of bytes at a time.
extern "C" void emulator_add(void* base, size_t bytes, size_t grain) {
    emulator::allocations[reinterpret_cast<uintptr_t>(base)] = std::make_unique<emulator::Owned>(base, bytes, "global", grain);
}

extern "C" void emulator_remove(void* base) { emulator::allocations.erase(reinterpret_cast<uintptr_t>(base)); }

// The host, or a copy, has written there.
extern "C" void emulator_written(const void* at, size_t bytes) {
    emulator::Owned* owned = emulator::holder(at);
    if (!owned || bytes == 0) return;
    size_t offset = size_t(static_cast<const unsigned char*>(at) - owned->region.base), grain = owned->region.grain;
    for (size_t i = offset / grain; i <= (offset + bytes - 1) / grain; i++) owned->shadow[i].written = true;
}

// How many bytes from there nobody has written.
extern "C" size_t emulator_unwritten(const void* at, size_t bytes) {
    emulator::Owned* owned = emulator::holder(at);
    if (!owned || bytes == 0) return 0;
    size_t offset = size_t(static_cast<const unsigned char*>(at) - owned->region.base), grain = owned->region.grain, count = 0;
    for (size_t i = offset / grain; i <= (offset + bytes - 1) / grain; i++) count += !owned->shadow[i].written;
    return count * grain;
}

// Runs a kernel; what went wrong is written to `message`, which is empty where nothing did. `bytes` has what each argument may
// reach, `NUMBER` for a number.
extern "C" void emulator_launch(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                                const char* signature, void* const* arguments, const size_t* bytes, size_t count, uint64_t seed,
                                char* message, size_t length) {
    auto failure = emulator::run(kernel, grid, block, shared_bytes, signature, arguments, bytes, count, seed);
    std::snprintf(message, length, "%s", failure.c_str());
}
