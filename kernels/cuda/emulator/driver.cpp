// A driver without a card: the functions of libcuda.so.1 that this program calls, with the emulator behind them. With it the
// program's own way to a card, from loading the library to the arguments of a launch, is run where there is none. What kernels
// do is not checked here but for the bounds of the memory: the emulator by itself does that.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
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
constexpr int SHARED_LIMIT = 99 << 10;
constexpr size_t MEMORY = size_t(4) << 30;
constexpr uint32_t FATBIN = 0xba55ed50;

struct Function {
    std::string name;
    std::vector<size_t> sizes;
};
struct Event {
    std::chrono::steady_clock::time_point at;
};

std::vector<std::unique_ptr<Function>> functions;
size_t allocated = 0;
int token;

}  // namespace

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "emulated card"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY, SUCCESS; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = MEMORY - allocated, *total = MEMORY, SUCCESS; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &token, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void* context) { return context == &token ? SUCCESS : INVALID_VALUE; }
int cuStreamCreate(void** stream, unsigned) { return *stream = &token, SUCCESS; }
int cuStreamDestroy_v2(void*) { return SUCCESS; }
int cuStreamSynchronize(void* stream) { return stream == &token ? SUCCESS : INVALID_VALUE; }

int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case MULTIPROCESSORS: return *value = 3, SUCCESS;
        case MAJOR: return *value = 8, SUCCESS;
        case MINOR: return *value = 0, SUCCESS;
        case SHARED_OF_MULTIPROCESSOR: return *value = SHARED_LIMIT + 1024, SUCCESS;
        case SHARED_OF_BLOCK: return *value = SHARED_LIMIT, SUCCESS;
        default: return INVALID_VALUE;
    }
}

int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    if (allocated + bytes > MEMORY) return OUT_OF_MEMORY;
    // Pages that nobody touches cost nothing.
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    allocated += bytes;
    emulator::add_unchecked(base, bytes);
    return *at = reinterpret_cast<uint64_t>(base), SUCCESS;
}
int cuMemFree_v2(uint64_t) { return SUCCESS; }

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    return std::memcpy(reinterpret_cast<void*>(to), from, bytes), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    return std::memcpy(to, reinterpret_cast<void*>(from), bytes), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) {
    return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), SUCCESS;
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void*) {
    return std::memset(reinterpret_cast<void*>(at), value, bytes), SUCCESS;
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
int cuFuncSetAttribute(void*, int, int value) { return value <= SHARED_LIMIT ? SUCCESS : INVALID_VALUE; }

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** arguments, void**) {
    if (stream != &token || shared > unsigned(SHARED_LIMIT)) return INVALID_VALUE;
    auto known = static_cast<Function*>(function);
    unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    auto failure = emulator::launch_unchecked(known->name.c_str(), grid, block, shared, arguments, known->sizes.size());
    if (failure.empty()) return SUCCESS;
    return std::fprintf(stderr, "%s\n", failure.c_str()), LAUNCH_FAILED;
}

int cuEventCreate(void** event, unsigned) { return *event = new Event(), SUCCESS; }
int cuEventRecord(void* event, void*) {
    return static_cast<Event*>(event)->at = std::chrono::steady_clock::now(), SUCCESS;
}
int cuEventSynchronize(void*) { return SUCCESS; }
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
