// A driver without a card: the functions of libcuda.so.1 that this program calls, with the emulator behind them. With it the
// program's own way to a card, from loading the library to the arguments of a launch, is run where there is none. What kernels
// do is not checked here but for the bounds of the memory: the emulator by itself does that.
//
// What a stream is asked is done when somebody waits for it: the main one, which has the highest priority, always as late as it
// may be; the others at once, or as late, too, where EMULATED_LANES is "late". What is missing an event goes wrong in one of both.
//
// EMULATED_CARD=h200 is a card with an H200's numbers. EMULATED_KERNELS=none does nothing that is asked: what is read from the card
// is 0, and no memory of it is touched; a launch takes 20 µs. So whole steps at real sizes are asked for in seconds: each launch within
// the limits of a card, each buffer within its memory. EMULATED_CUDA=12020 is a driver of CUDA 12.2.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {
const std::string* signature(const char* kernel);
void add_unchecked(void* base, size_t bytes);
std::string launch_unchecked(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                             void* const* arguments, size_t count);
}  // namespace emulator

namespace {

// Of the real driver's numbers, those that are told here.
constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719;
constexpr int MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, SHARED_OF_MULTIPROCESSOR = 81, SHARED_OF_BLOCK = 97;
// Of any card: blocks along x, blocks along y and z, and threads of a block.
constexpr unsigned BLOCKS = 0x7fffffff, ROWS_OF_BLOCKS = 0xffff, THREADS = 1024;

bool is_set(const char* variable, const char* value) {
    const char* found = std::getenv(variable);
    return found && std::strcmp(found, value) == 0;
}

struct Card {
    int major, minor, multiprocessors, shared;
    size_t memory;
};
const Card card = is_set("EMULATED_CARD", "h200") ? Card{9, 0, 132, 227 << 10, size_t(139) << 30}
                                                  : Card{8, 0, 3, 99 << 10, size_t(4) << 30};
const bool idle = is_set("EMULATED_KERNELS", "none");
constexpr uint32_t FATBIN = 0xba55ed50;

struct Function {
    std::string name;
    std::vector<size_t> sizes;
};
struct Stream {
    bool late;
    std::deque<std::function<int()>> asked;
    // So many were asked and done.
    size_t count = 0, done = 0;
};
struct Event {
    Stream* stream = nullptr;
    size_t place = 0;
    std::chrono::steady_clock::time_point at;
};

std::vector<std::unique_ptr<Function>> functions;
std::vector<std::unique_ptr<Stream>> streams;
size_t allocated = 0;
// Where nothing is done, so many launches had their turn.
size_t launched = 0;
int token;
// What went wrong first stays.
int failure = SUCCESS;

// Does what a stream was asked up to that place.
void bring(Stream* stream, size_t place) {
    while (stream->done < place) {
        auto next = std::move(stream->asked.front());
        stream->asked.pop_front();
        int found = next();
        if (failure == SUCCESS) failure = found;
        stream->done++;
    }
}

int ask(void* at, std::function<int()> work) {
    auto stream = static_cast<Stream*>(at);
    bool known = false;
    for (auto& one : streams) known |= one.get() == stream;
    if (!known) return INVALID_VALUE;
    stream->asked.push_back(std::move(work));
    stream->count++;
    if (!stream->late) bring(stream, stream->count);
    return failure;
}

// Pieces of memory, where they begin and end.
using Pieces = std::map<uintptr_t, uintptr_t>;
Pieces pinned, on_card;

bool is_in(const Pieces& pieces, uintptr_t from, size_t bytes) {
    auto after = pieces.upper_bound(from);
    return after != pieces.begin() && from + bytes <= std::prev(after)->second;
}
bool is_pinned(const void* at, size_t bytes) { return is_in(pinned, reinterpret_cast<uintptr_t>(at), bytes); }
bool is_on_card(uint64_t at, size_t bytes) { return is_in(on_card, at, bytes); }

int nothing() { return SUCCESS; }

}  // namespace

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) {
    const char* told = std::getenv("EMULATED_CUDA");
    return *version = told ? std::atoi(told) : 13000, SUCCESS;
}
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "emulated card"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = card.memory, SUCCESS; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = card.memory - allocated, *total = card.memory, SUCCESS; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &token, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void* context) { return context == &token ? SUCCESS : INVALID_VALUE; }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, SUCCESS; }
int cuStreamCreateWithPriority(void** stream, unsigned, int priority) {
    streams.push_back(std::make_unique<Stream>());
    streams.back()->late = priority < 0 || is_set("EMULATED_LANES", "late");
    return *stream = streams.back().get(), SUCCESS;
}
int cuStreamDestroy_v2(void*) { return SUCCESS; }
int cuStreamSynchronize(void* at) {
    auto stream = static_cast<Stream*>(at);
    return bring(stream, stream->count), failure;
}
int cuStreamWaitEvent(void* stream, void* at, unsigned) {
    auto event = static_cast<Event*>(at);
    // As it is now: it may be recorded again.
    return ask(stream, [of = event->stream, place = event->place] { if (of) bring(of, place); return SUCCESS; });
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case MULTIPROCESSORS: return *value = card.multiprocessors, SUCCESS;
        case MAJOR: return *value = card.major, SUCCESS;
        case MINOR: return *value = card.minor, SUCCESS;
        case SHARED_OF_MULTIPROCESSOR: return *value = card.shared + 1024, SUCCESS;
        case SHARED_OF_BLOCK: return *value = card.shared, SUCCESS;
        default: return INVALID_VALUE;
    }
}

int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    if (allocated + bytes > card.memory) return OUT_OF_MEMORY;
    // Pages that nobody touches cost nothing.
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    allocated += bytes;
    emulator::add_unchecked(base, bytes);
    *at = reinterpret_cast<uint64_t>(base);
    return on_card[*at] = *at + bytes, SUCCESS;
}
int cuMemFree_v2(uint64_t) { return SUCCESS; }

int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    *at = std::malloc(bytes);
    if (!*at) return OUT_OF_MEMORY;
    auto from = reinterpret_cast<uintptr_t>(*at);
    return pinned[from] = from + bytes, SUCCESS;
}
int cuMemFreeHost(void* at) {
    if (pinned.erase(reinterpret_cast<uintptr_t>(at)) == 0) return INVALID_VALUE;
    return std::free(at), SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    if (!is_on_card(to, bytes)) return INVALID_VALUE;
    auto at = reinterpret_cast<void*>(to);
    if (idle) return ask(stream, nothing);
    if (is_pinned(from, bytes)) return ask(stream, [=] { return std::memcpy(at, from, bytes), SUCCESS; });
    // Pageable memory has been read when this returns.
    auto first = static_cast<const char*>(from);
    return ask(stream, [=, values = std::vector<char>(first, first + bytes)] {
        return std::memcpy(at, values.data(), bytes), SUCCESS;
    });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    if (!is_on_card(from, bytes)) return INVALID_VALUE;
    if (idle && is_pinned(to, bytes)) return ask(stream, nothing);
    if (idle) return ask(stream, [=] { return std::memset(to, 0, bytes), SUCCESS; });
    return ask(stream, [=] { return std::memcpy(to, reinterpret_cast<void*>(from), bytes), SUCCESS; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    if (!is_on_card(to, bytes) || !is_on_card(from, bytes)) return INVALID_VALUE;
    if (idle) return ask(stream, nothing);
    return ask(stream, [=] {
        return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), SUCCESS;
    });
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void* stream) {
    if (!is_on_card(at, bytes)) return INVALID_VALUE;
    if (idle) return ask(stream, nothing);
    return ask(stream, [=] { return std::memset(reinterpret_cast<void*>(at), value, bytes), SUCCESS; });
}

int cuModuleLoadData(void** module, const void* image) {
    uint32_t magic;
    std::memcpy(&magic, image, 4);
    if (magic != FATBIN || reinterpret_cast<uintptr_t>(image) % 8 != 0) return INVALID_IMAGE;
    return *module = const_cast<void*>(image), SUCCESS;
}
int cuModuleUnload(void*) { return SUCCESS; }

int cuModuleGetFunction(void** function, void*, const char* name) {
    const std::string* signature = emulator::signature(name);
    if (!signature) return NOT_FOUND;
    auto made = std::make_unique<Function>();
    made->name = name;
    for (size_t at = 0; at < signature->size();) {
        size_t end = std::min(signature->find(", ", at), signature->size());
        std::string type = signature->substr(at, end - at);
        made->sizes.push_back(type.back() == '*' || type == "u64" ? 8 : 4);
        at = end + 2;
    }
    *function = made.get();
    functions.push_back(std::move(made));
    return SUCCESS;
}

int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
    auto& sizes = static_cast<Function*>(function)->sizes;
    if (index >= sizes.size()) return INVALID_VALUE;
    return *offset = 8 * index, *size = sizes[index], SUCCESS;
}
int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, SUCCESS; }
int cuFuncSetAttribute(void*, int, int value) { return value <= card.shared ? SUCCESS : INVALID_VALUE; }

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** arguments, void**) {
    bool fits = gx && gy && gz && gx <= BLOCKS && gy <= ROWS_OF_BLOCKS && gz <= ROWS_OF_BLOCKS;
    fits &= bx && by && bz && uint64_t(bx) * by * bz <= THREADS && shared <= unsigned(card.shared);
    if (!fits) return INVALID_VALUE;
    if (idle) return ask(stream, [] { return launched++, SUCCESS; });
    auto known = static_cast<Function*>(function);
    std::vector<uint64_t> values;
    for (size_t i = 0; i < known->sizes.size(); i++) {
        values.push_back(0);
        std::memcpy(&values.back(), arguments[i], known->sizes[i]);
    }
    return ask(stream, [=]() mutable {
        unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(&value);
        auto said = emulator::launch_unchecked(known->name.c_str(), grid, block, shared, pointers.data(), pointers.size());
        if (said.empty()) return SUCCESS;
        return std::fprintf(stderr, "%s\n", said.c_str()), LAUNCH_FAILED;
    });
}

int cuLaunchHostFunc(void* stream, void (*work)(void*), void* data) {
    if (idle) return ask(stream, nothing);
    return ask(stream, [=] { return work(data), SUCCESS; });
}

int cuEventCreate(void** event, unsigned) { return *event = new Event(), SUCCESS; }
int cuEventRecord(void* at, void* stream) {
    auto event = static_cast<Event*>(at);
    event->stream = static_cast<Stream*>(stream);
    event->place = event->stream->count + 1;
    return ask(stream, [event] {
        using Clock = std::chrono::steady_clock;
        event->at = idle ? Clock::time_point(launched * std::chrono::microseconds(20)) : Clock::now();
        return SUCCESS;
    });
}
int cuEventSynchronize(void* at) {
    auto event = static_cast<Event*>(at);
    return bring(event->stream, event->place), failure;
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    auto between = static_cast<Event*>(end)->at - static_cast<Event*>(start)->at;
    return *milliseconds = std::chrono::duration<float, std::milli>(between).count(), SUCCESS;
}
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) { return cuEventElapsedTime(milliseconds, start, end); }
int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), SUCCESS; }

int cuGetErrorName(int error, const char** text) {
    return *text = error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_OF_THE_EMULATOR", SUCCESS;
}
int cuGetErrorString(int, const char** text) { return *text = "the emulated driver refused", SUCCESS; }

}  // extern "C"
