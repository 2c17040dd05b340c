// The NF4 matrices of some experts to bf16: 8 values a thread and step, 4 bytes in and 16 out. Bound by memory: 2.5 bytes a
// value move, so 90 % of a copy's rate is what to expect.
#include "nf4.h"

namespace {

// The scale of a block of a matrix that was quantised by itself, one of several with so many blocks each.
DEVICE float scale_of(global<const float> absmax, global<const uint8_t> codes, global<const float> nested,
                      global<const float> offsets, global<const float> map, int matrix, int blocks, int block) {
    int64_t at = int64_t(matrix) * blocks + block;
    if (absmax) return absmax[at];
    int nests = (blocks + nf4::NESTED_BLOCK - 1) / nf4::NESTED_BLOCK;
    return add(multiply(map[codes[at]], nested[int64_t(matrix) * nests + block / nf4::NESTED_BLOCK]), offsets[matrix]);
}

}  // namespace

// Matrix first + blockIdx.y: `count` values (a multiple of 8) to place blockIdx.y of `out`.
extern "C" __global__ void __launch_bounds__(256)
    moe_decode(global<const uint8_t> packed, global<const float> absmax, global<const uint8_t> codes, global<const float> nested,
               global<const float> offsets, global<const float> map, int first, int count, global<bf16> out) {
    SHARED(float, code, 16);
    if (threadIdx.x < 16) code[threadIdx.x] = nf4::CODE[threadIdx.x];
    sync_block();
    int matrix = first + int(blockIdx.y), blocks = (count + nf4::BLOCK - 1) / nf4::BLOCK;
    global<const uint8_t> from = packed + int64_t(matrix) * (count / 2);
    global<bf16> to = out + int64_t(blockIdx.y) * count;
    for (int at = int(blockIdx.x * blockDim.x + threadIdx.x); at < count / 8; at += int(gridDim.x * blockDim.x)) {
        uint32_t eight = load_once<uint32_t>(from + int64_t(at) * 4);
        float scale = scale_of(absmax, codes, nested, offsets, map, matrix, blocks, at / (nf4::BLOCK / 8));
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t byte = eight >> (8 * i);
            pairs[i] = pack(multiply(code[(byte >> 4) & 15], scale), multiply(code[byte & 15], scale));
        }
        store(to + int64_t(at) * 8, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    }
}
KERNEL(moe_decode)
