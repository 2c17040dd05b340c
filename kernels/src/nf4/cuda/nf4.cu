// NF4 weights to bf16: x' = code[index] * absmax, rounded once.
//
// Bound by memory: 2.56 bytes a value, of which 2 are written. A thread decodes 4 pieces of 8 values: it reads 4 bytes of each and
// writes 16, so a warp reads 128 bytes in a row and writes 512; all that the pieces need is asked for before the first is
// decoded, since scales of scales are two reads one after the other. The 16 values of the code lie in 16 banks of shared
// memory, so that any 32 indices are looked up without waiting. 8 values that begin at a multiple of 8 have one absmax.
#include "nf4.h"

namespace {

constexpr int VALUES = 8;
constexpr int PIECES = 4;

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

template <class Scales>
DEVICE void decode(global<const uint8_t> packed, const Scales& scales, shared<float> code, global<bf16> out, uint64_t count) {
    uint64_t whole = count / VALUES;
    uint64_t block = uint64_t(blockDim.x) * PIECES;
    for (uint64_t first = blockIdx.x * block + threadIdx.x; first < whole; first += gridDim.x * block) {
        uint32_t eight[PIECES];
        float absmax[PIECES];
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            uint64_t at = first + uint64_t(i) * blockDim.x;
            eight[i] = at < whole ? load_once<uint32_t>(packed + at * 4) : 0;
        }
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            uint64_t at = first + uint64_t(i) * blockDim.x;
            absmax[i] = at < whole ? scales.of(at * VALUES / nf4::BLOCK) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            uint64_t at = first + uint64_t(i) * blockDim.x;
            if (at >= whole) continue;
            uint32_t pairs[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                pairs[k] = pack(decoded(code, eight[i], 2 * k, absmax[i]), decoded(code, eight[i], 2 * k + 1, absmax[i]));
            }
            store(out + at * VALUES, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
        }
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
