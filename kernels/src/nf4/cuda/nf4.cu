// NF4 weights to bf16: x' = code[index] * absmax, rounded once.
//
// A thread decodes 8 values at a time: it reads 4 bytes and writes 16, so a warp reads 128 bytes in a row and writes 512. The
// 16 values of the code lie in 16 banks of shared memory, so that any 32 indices are looked up without waiting. 8 values that
// begin at a multiple of 8 have one absmax.
#include "nf4.h"

namespace {

constexpr int VALUES = 8;

struct Plain {
    global<const float> absmax;

    DEVICE float of(uint64_t block) const { return absmax[block]; }
};

// The absmax values in 8 bits: map[code] * nested + offset.
struct Double {
    global<const uint8_t> codes;
    global<const float> nested;
    shared<float> map;
    float offset;

    DEVICE float of(uint64_t block) const {
        return add(multiply(map[codes[block]], nested[block / nf4::NESTED_BLOCK]), offset);
    }
};

// The first value of a byte is its high half.
DEVICE float decoded(shared<float> code, uint32_t packed, int value, float absmax) {
    uint32_t index = (packed >> (8 * (value / 2) + (value % 2 ? 0 : 4))) & 15;
    return multiply(code[index], absmax);
}

DEVICE uint32_t pair(float low, float high) {
    bf16 both[2] = {to_bf16(low), to_bf16(high)};
    uint32_t bits;
    memcpy(&bits, both, 4);
    return bits;
}

template <class Scales>
DEVICE void decode(global<const uint8_t> packed, const Scales& scales, shared<float> code, global<bf16> out, uint64_t count) {
    uint64_t whole = count / VALUES;
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < whole; at += step) {
        uint32_t eight = load<uint32_t>(packed + at * 4);
        float absmax = scales.of(at * VALUES / nf4::BLOCK);
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = pair(decoded(code, eight, 2 * i, absmax), decoded(code, eight, 2 * i + 1, absmax));
        }
        store(out + at * VALUES, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    }
    // Fewer than 8 values at the end, one for each of the first threads.
    uint64_t last = whole * VALUES + threadIdx.x;
    if (blockIdx.x == 0 && last < count) {
        out[last] = to_bf16(decoded(code, packed[last / 2], last % 2, scales.of(last / nf4::BLOCK)));
    }
}

DEVICE void load_code(shared<float> code) {
    if (threadIdx.x < 16) code[threadIdx.x] = nf4::CODE[threadIdx.x];
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    nf4_decode(global<const uint8_t> packed, global<const float> absmax, global<bf16> out, uint64_t count) {
    SHARED(float, code, 16);
    load_code(code);
    sync_block();
    decode(packed, Plain{absmax}, code, out, count);
}
KERNEL(nf4_decode)

extern "C" __global__ void __launch_bounds__(256)
    nf4_decode_double(global<const uint8_t> packed, global<const uint8_t> codes, global<const float> nested,
                      global<const float> map, float offset, global<bf16> out, uint64_t count) {
    SHARED(float, code, 16);
    SHARED(float, mapped, 256);
    load_code(code);
    for (int i = threadIdx.x; i < 256; i += blockDim.x) mapped[i] = map[i];
    sync_block();
    decode(packed, Double{codes, nested, mapped, offset}, code, out, count);
}
KERNEL(nf4_decode_double)
