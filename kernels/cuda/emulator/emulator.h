// Kernels on the host, for the sake of being right: one fiber for each thread of a block, one block after another.
//
// What is seen: reads and writes beyond an allocation, misaligned wide accesses, reads of memory that nobody has written,
// two threads at the same place without a barrier between them (in a block, and across blocks), barriers that not all
// threads of a block reach, collective operations that not all threads of a warp take part in, shared memory that is read
// before its asynchronous copy was waited for. What is not: time, bank conflicts, anything that depends on real concurrency.
#pragma once

#if !defined(__x86_64__)
#error "the emulator changes stacks by hand, and knows how on x86-64 only"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __launch_bounds__(...)
#define __restrict__
#define DEVICE inline
#define CONSTANT static const

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct bf16 {
    uint16_t bits;
};

inline float to_float(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

inline bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40)};
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

// The host's compiler is told not to join them.
inline float multiply(float x, float y) { return x * y; }
inline float add(float x, float y) { return x + y; }
inline float fused(float x, float y, float z) { return std::fma(x, y, z); }
inline float divide(float x, float y) { return x / y; }
inline float square_root(float value) { return std::sqrt(value); }
inline float fast_exp(float value) { return std::exp(value); }
inline float fast_exp2(float value) { return std::exp2(value); }
inline float fast_log(float value) { return std::log(value); }
inline float reciprocal_root(float value) { return 1.0f / std::sqrt(value); }
inline float quotient(float x, float y) { return x / y; }
inline float fast_reciprocal(float value) { return 1.0f / value; }
inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t pack(float low, float high) { return uint32_t(to_bf16(low).bits) | uint32_t(to_bf16(high).bits) << 16; }
inline float low(uint32_t pair) { return bits_float(pair << 16); }
inline float high(uint32_t pair) { return bits_float(pair & 0xffff0000u); }
inline uint32_t multiply_pairs(uint32_t x, uint32_t y) { return pack(low(x) * low(y), high(x) * high(y)); }
inline int count_leading_zeros(uint32_t bits) { return bits ? __builtin_clz(bits) : 32; }
inline int count_ones(uint32_t bits) { return __builtin_popcount(bits); }
inline uint32_t permute_bytes(uint32_t x, uint32_t y, uint32_t places) {
    uint64_t both = uint64_t(y) << 32 | x;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t byte = uint32_t(both >> 8 * (places >> 4 * i & 7) & 0xff);
        if (places >> 4 * i & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline int here(int value) { return value; }
// To the nearest that has 10 bits behind the point, ties away from 0.
inline uint32_t to_tf32(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & 0xffffe000u;
}
using std::max;
using std::min;

namespace emulator {

// Memory that kernels may reach: an allocation of the host's, or a block's shared memory.
struct Region;

enum class Access { Read, Write, Atomic };

// Ends the launch with a message if an access is wrong, and takes note of it otherwise.
void touch(Region* region, const void* at, size_t bytes, Access access);
// What a kernel may reach of an argument: as much of its allocation as the launch has named.
Region* window(int argument);
// The allocation that an address out of memory lies in; fails where it is none that was made known.
Region* find(const void* at);
// Memory of a block under a name, the same for all of its threads. `count` 0: all that the launch has for it.
void* carve(const void* site, size_t bytes, Region** region);
void* dynamic(Region** region);

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
int lane();

void barrier();
// All threads of a warp meet; each leaves `bytes` and may then read what the others left.
const unsigned char* meet(const char* what, const void* own, size_t bytes);
void part();
const unsigned char* of_lane(const unsigned char* left, int lane);

// What a thread has written is seen by tensor cores that read shared memory themselves.
void fence_for_tensor_cores();
// Products of tensor cores that go on by themselves.
struct Factor {
    const unsigned char* at;
    Region* region;
    // Bytes from 64 columns to the next; 0 where k runs along the rows.
    int distance;

    // Where one value lies.
    const unsigned char* place(int outer, int k) const;
};
void fence_sums();
void multiply_later(float* sums, const Factor& a, const Factor& b);
void commit_products();
void wait_for_products(int groups);

void copy_later(void* to, Region* region, const unsigned char* bytes);
void commit_copies();
void wait_for_copies(int groups);

[[noreturn]] void fail(const std::string& why);

// A pointer that knows where it may lead.
template <class T> class checked {
   public:
    T* at = nullptr;
    Region* region = nullptr;

    checked() = default;
    checked(T* at, Region* region) : at(at), region(region) {}
    template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
    checked(checked<U> other) : at(other.at), region(other.region) {}

    class place {
       public:
        place(T* at, Region* region) : at(at), region(region) {}
        operator std::remove_const_t<T>() const {
            touch(region, at, sizeof(T), Access::Read);
            return *at;
        }
        place& operator=(std::remove_const_t<T> value) {
            touch(region, at, sizeof(T), Access::Write);
            *at = value;
            return *this;
        }
        place& operator=(const place& other) { return *this = std::remove_const_t<T>(other); }
        place& operator+=(std::remove_const_t<T> value) { return *this = std::remove_const_t<T>(*this) + value; }
        place& operator-=(std::remove_const_t<T> value) { return *this = std::remove_const_t<T>(*this) - value; }
        place& operator*=(std::remove_const_t<T> value) { return *this = std::remove_const_t<T>(*this) * value; }
        checked operator&() const { return {at, region}; }

       private:
        T* at;
        Region* region;
    };

    place operator[](ptrdiff_t index) const { return {at + index, region}; }
    place operator*() const { return {at, region}; }
    checked operator+(ptrdiff_t by) const { return {at + by, region}; }
    checked operator-(ptrdiff_t by) const { return {at - by, region}; }
    ptrdiff_t operator-(checked other) const { return at - other.at; }
    checked& operator+=(ptrdiff_t by) {
        at += by;
        return *this;
    }
    checked& operator-=(ptrdiff_t by) {
        at -= by;
        return *this;
    }
    bool operator<(checked other) const { return at < other.at; }
    explicit operator bool() const { return at != nullptr; }
    bool operator==(std::nullptr_t) const { return at == nullptr; }
    bool operator!=(std::nullptr_t) const { return at != nullptr; }
};

template <class T> inline constexpr bool is_checked = false;
template <class T> inline constexpr bool is_checked<checked<T>> = true;

using Entry = void (*)(void* const* arguments);

struct Registered {
    Registered(const char* name, Entry entry, const std::string& arguments);
};

template <class T> struct Named;
template <> struct Named<float> { static constexpr const char* name = "f32"; };
template <> struct Named<bf16> { static constexpr const char* name = "bf16"; };
template <> struct Named<uint8_t> { static constexpr const char* name = "u8"; };
template <> struct Named<int> { static constexpr const char* name = "i32"; };
template <> struct Named<uint32_t> { static constexpr const char* name = "u32"; };
template <> struct Named<uint64_t> { static constexpr const char* name = "u64"; };

// An argument as a launch hands it over: pointers are plain addresses there.
template <class P> P argument(void* const* from, int index) {
    if constexpr (is_checked<P>) {
        auto at = *static_cast<decltype(P::at)*>(from[index]);
        return P(at, window(index));
    } else {
        return *static_cast<P*>(from[index]);
    }
}

template <class P> std::string argument_name() {
    if constexpr (is_checked<P>) {
        using T = std::remove_pointer_t<decltype(P::at)>;
        return std::string(std::is_const_v<T> ? "const " : "") + Named<std::remove_const_t<T>>::name + "*";
    } else {
        return Named<P>::name;
    }
}

template <auto kernel> struct Unpacked;
template <class... P, void (*kernel)(P...)> struct Unpacked<kernel> {
    template <size_t... I> static void call(void* const* arguments, std::index_sequence<I...>) {
        kernel(argument<std::remove_const_t<P>>(arguments, int(I))...);
    }
    static void run(void* const* arguments) { call(arguments, std::index_sequence_for<P...>()); }
    // As the host's side declares it: "const bf16*, f32*, u64".
    static std::string arguments() {
        std::string all;
        ((all += (all.empty() ? "" : ", ") + argument_name<std::remove_const_t<P>>()), ...);
        return all;
    }
};

}  // namespace emulator

template <class T> using global = emulator::checked<T>;
template <class T> using shared = emulator::checked<T>;

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

#define KERNEL(name) \
    static emulator::Registered registered_##name(#name, &emulator::Unpacked<&name>::run, emulator::Unpacked<&name>::arguments());
#define SHARED(T, name, count)                                                                 \
    static const char site_##name = 0;                                                         \
    emulator::Region* region_##name = nullptr;                                                 \
    T* carved_##name = static_cast<T*>(emulator::carve(&site_##name, sizeof(T) * (count), &region_##name)); \
    emulator::checked<T> name(carved_##name, region_##name)
#define DYNAMIC_SHARED(T, name)                                              \
    emulator::Region* region_##name = nullptr;                               \
    T* carved_##name = static_cast<T*>(emulator::dynamic(&region_##name));   \
    emulator::checked<T> name(carved_##name, region_##name)
#define ALIGNED_SHARED(T, name) DYNAMIC_SHARED(T, name)
#define ONLY_FOR(architecture)

template <class V, class T> V load(emulator::checked<T> from) {
    emulator::touch(from.region, from.at, sizeof(V), emulator::Access::Read);
    V value;
    std::memcpy(&value, from.at, sizeof(V));
    return value;
}
template <class V, class T> void store(emulator::checked<T> to, V value) {
    emulator::touch(to.region, to.at, sizeof(V), emulator::Access::Write);
    std::memcpy(to.at, &value, sizeof(V));
}
template <class V, class T> V load_once(emulator::checked<T> from) { return load<V>(from); }
// Memory by an address that was itself read from memory.
template <class T> global<T> at_address(uint64_t address) {
    auto at = reinterpret_cast<T*>(address);
    return {at, emulator::find(at)};
}
template <class U, class T> emulator::checked<U> as(emulator::checked<T> from) {
    return {reinterpret_cast<U*>(from.at), from.region};
}

inline int lane_index() { return emulator::lane(); }
inline void sync_block() { emulator::barrier(); }
inline void sync_warp() {
    emulator::meet("sync_warp", nullptr, 0);
    emulator::part();
}

template <class T> T shuffle(T value, int lane) {
    auto left = emulator::meet("shuffle", &value, sizeof(T));
    T result;
    std::memcpy(&result, emulator::of_lane(left, lane & 31), sizeof(T));
    emulator::part();
    return result;
}
template <class T> T shuffle_xor(T value, int mask) { return shuffle(value, emulator::lane() ^ mask); }
template <class T> T shuffle_up(T value, int by) {
    int from = emulator::lane() - by;
    return shuffle(value, from >= 0 ? from : emulator::lane());
}
template <class T> T shuffle_down(T value, int by) {
    int from = emulator::lane() + by;
    return shuffle(value, from < 32 ? from : emulator::lane());
}
inline unsigned votes(bool value) {
    auto left = emulator::meet("votes", &value, 1);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= unsigned(*emulator::of_lane(left, lane) != 0) << lane;
    emulator::part();
    return bits;
}
inline bool vote_any(bool value) { return votes(value) != 0; }
inline bool vote_all(bool value) { return votes(value) == 0xffffffffu; }

template <class T> T atomic_add(emulator::checked<T> at, T value) {
    static_assert(std::is_integral_v<T>, "a sum of floats would depend on who comes first");
    emulator::touch(at.region, at.at, sizeof(T), emulator::Access::Atomic);
    T before = *at.at;
    *at.at += value;
    return before;
}

// The layout of the hardware's fragments, with group = lane / 4 and place = lane % 4:
//   A (16 x 16, rows): register r holds row group + 8 (r % 2), columns 2 place + 8 (r / 2) and the next
//   B (16 x 8, columns): register r holds column group, rows 2 place + 8 r and the next
//   D (16 x 8): value i stands in row group + 8 (i / 2), column 2 place + i % 2
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragments {
        uint32_t a[4], b[2];
    } own;
    std::memcpy(own.a, a, sizeof(own.a));
    std::memcpy(own.b, b, sizeof(own.b));
    auto left = emulator::meet("mma_bf16", &own, sizeof(own));
    auto of = [&](int lane) { return reinterpret_cast<const Fragments*>(emulator::of_lane(left, lane)); };
    auto half = [](uint32_t both, int which) { return to_float(bf16{uint16_t(which ? both >> 16 : both & 0xffff)}); };
    int group = emulator::lane() / 4, place = emulator::lane() % 4;
    for (int i = 0; i < 4; i++) {
        int row = group + 8 * (i / 2), column = 2 * place + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            int holder = (k % 8) / 2, high = k / 8;
            float x = half(of((row % 8) * 4 + holder)->a[row / 8 + 2 * high], k % 2);
            float y = half(of(column * 4 + holder)->b[high], k % 2);
            sum += x * y;
        }
        d[i] += sum;
    }
    emulator::part();
}

// m16n8k8 of tf32, with group = lane / 4 and place = lane % 4:
//   A (16 x 8, rows): register r holds row group + 8 (r % 2), column place + 4 (r / 2)
//   B (8 x 8, columns): register r holds column group, row place + 4 r
//   D as above
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragments {
        uint32_t a[4], b[2];
    } own;
    std::memcpy(own.a, a, sizeof(own.a));
    std::memcpy(own.b, b, sizeof(own.b));
    auto left = emulator::meet("mma_tf32", &own, sizeof(own));
    auto of = [&](int lane) { return reinterpret_cast<const Fragments*>(emulator::of_lane(left, lane)); };
    // The hardware looks at the first 19 bits only.
    auto value = [](uint32_t bits) { return bits_float(bits & 0xffffe000u); };
    int group = emulator::lane() / 4, place = emulator::lane() % 4;
    for (int i = 0; i < 4; i++) {
        int row = group + 8 * (i / 2), column = 2 * place + i % 2;
        float sum = 0;
        for (int k = 0; k < 8; k++) {
            float x = value(of((row % 8) * 4 + k % 4)->a[row / 8 + 2 * (k / 4)]);
            float y = value(of(column * 4 + k % 4)->b[k / 4]);
            sum += x * y;
        }
        d[i] += sum;
    }
    emulator::part();
}

namespace emulator {
// Four 8x8 matrices: lane 8 m + r gives the address of row r of matrix m, 16 bytes of it.
inline void matrices(uint32_t (&d)[4], checked<bf16> row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row.at) % 16 != 0) fail("load_matrix: a row does not begin at a multiple of 16 bytes");
    touch(row.region, row.at, 16, Access::Read);
    auto left = meet("load_matrix", row.at, 16);
    int group = lane() / 4, place = lane() % 4;
    for (int m = 0; m < 4; m++) {
        uint16_t two[2];
        for (int i = 0; i < 2; i++) {
            int r = transposed ? 2 * place + i : group, c = transposed ? group : 2 * place + i;
            std::memcpy(&two[i], of_lane(left, 8 * m + r) + 2 * c, 2);
        }
        d[m] = uint32_t(two[0]) | uint32_t(two[1]) << 16;
    }
    part();
}
}  // namespace emulator

inline void load_matrix(uint32_t (&d)[4], emulator::checked<bf16> row) { emulator::matrices(d, row, false); }
inline void load_matrix_transposed(uint32_t (&d)[4], emulator::checked<bf16> row) { emulator::matrices(d, row, true); }

template <class T, class U> void copy_async(emulator::checked<T> to, emulator::checked<U> from, int bytes = 16) {
    if (reinterpret_cast<uintptr_t>(to.at) % 16 || reinterpret_cast<uintptr_t>(from.at) % 16) {
        emulator::fail("copy_async: an address is no multiple of 16 bytes");
    }
    unsigned char copied[16] = {};
    if (bytes > 0) {
        emulator::touch(from.region, from.at, size_t(bytes), emulator::Access::Read);
        std::memcpy(copied, from.at, size_t(bytes));
    }
    emulator::copy_later(to.at, to.region, copied);
}
template <class T, class U> void copy_async_if(emulator::checked<T> to, emulator::checked<U> from, uint32_t there) {
    copy_async(to, from, there ? 16 : 0);
}
inline void commit_async() { emulator::commit_copies(); }
template <int N> void wait_async() { emulator::wait_for_copies(N); }

// Of an address; the 128-byte swizzle is in `Factor::place`.
struct Matrix : emulator::Factor {
    static Matrix along(emulator::checked<bf16> at) { return of(at, 0); }
    static Matrix across(emulator::checked<bf16> at, int distance) { return of(at, distance); }
    Matrix behind(int bytes) const {
        Matrix moved = *this;
        moved.at += bytes;
        return moved;
    }

   private:
    static Matrix of(emulator::checked<bf16> from, int distance) {
        Matrix made;
        made.at = reinterpret_cast<const unsigned char*>(from.at);
        made.region = from.region;
        made.distance = distance;
        return made;
    }
};

template <bool ACROSS> void wgmma_bf16(float (&d)[16][4], Matrix a, Matrix b) {
    if (a.distance != 0 || ACROSS != (b.distance != 0)) emulator::fail("wgmma: k does not run as it is said to");
    emulator::multiply_later(&d[0][0], a, b);
}
inline void wgmma_fence() { emulator::fence_sums(); }
inline void wgmma_commit() { emulator::commit_products(); }
template <int N> void wgmma_wait() { emulator::wait_for_products(N); }
inline void fence_async_proxy() { emulator::fence_for_tensor_cores(); }
