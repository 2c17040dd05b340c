// Random numbers by key and place, as noise/mod.rs defines them. 14 integer multiplications a number: at 16 bytes a thread
// writing is what takes the time.
#include "device.h"

namespace {

constexpr int VALUES = 8;

DEVICE uint64_t splitmix(uint64_t state) {
    uint64_t z = state + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

DEVICE uint64_t bits_at(uint64_t key, uint64_t place) { return splitmix(key ^ splitmix(place)); }

DEVICE float uniform(uint64_t key, uint64_t place) {
    return add(multiply(add(float(bits_at(key, place) >> 40), 0.5f), 1.0f / 8388608.0f), -1.0f);
}

}  // namespace

// x[row] += uniform * magnitudes[row], a value for each place of the matrix.
extern "C" __global__ void __launch_bounds__(256)
    noise_add_rows(global<bf16> x, global<const float> magnitudes, uint64_t count, int width, uint64_t key) {
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step) {
        float magnitude = magnitudes[at / uint64_t(width)];
        if (magnitude != 0.0f) x[at] = to_bf16(add(to_float(x[at]), multiply(uniform(key, at), magnitude)));
    }
}
KERNEL(noise_add_rows)

extern "C" __global__ void __launch_bounds__(256) noise_uniform(global<bf16> out, uint64_t count, float limit, uint64_t key) {
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at * VALUES < count; at += step) {
        uint64_t first = at * VALUES;
        if (first + VALUES <= count) {
            uint32_t pairs[VALUES / 2];
#pragma unroll
            for (int i = 0; i < VALUES / 2; i++) {
                pairs[i] = pack(multiply(uniform(key, first + 2 * i), limit), multiply(uniform(key, first + 2 * i + 1), limit));
            }
            store(out + first, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
        } else {
            for (uint64_t i = first; i < count; i++) out[i] = to_bf16(multiply(uniform(key, i), limit));
        }
    }
}
KERNEL(noise_uniform)

// Eight bytes of each number, the lowest first, moved into `low..=high`.
extern "C" __global__ void __launch_bounds__(256)
    noise_bytes(global<uint8_t> out, uint64_t count, uint32_t low_limit, uint32_t high_limit, uint64_t key) {
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    uint32_t range = high_limit - low_limit + 1;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at * 8 < count; at += step) {
        uint64_t bits = bits_at(key, at);
        uint32_t words[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t byte = uint32_t(bits >> (8 * i)) & 255;
            words[i / 4] |= (low_limit + (byte * range >> 8)) << (8 * (i % 4));
        }
        if (at * 8 + 8 <= count) {
            store(out + at * 8, make_uint2(words[0], words[1]));
        } else {
            for (uint64_t i = at * 8; i < count; i++) out[i] = uint8_t(words[(i % 8) / 4] >> (8 * (i % 4)));
        }
    }
}
KERNEL(noise_bytes)
