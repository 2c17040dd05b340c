// The NF4 matrices of some experts to bf16: 8 values a thread and step, 4 bytes in and 16 out. Bound by memory: 2.5 bytes a
// value move, so 90 % of a copy's rate is what to expect.
#include "experts_nf4.h"

using namespace experts_nf4;

// Expert first + blockIdx.y: `count` values (a multiple of 8) to out + blockIdx.y * stride + start.
extern "C" __global__ void __launch_bounds__(256)
    moe_decode(global<const uint8_t> packed, global<const float> absmax, global<const uint8_t> codes, global<const float> nested,
               global<const float> offsets, global<const float> map, int first, int count, uint64_t stride, uint64_t start,
               global<bf16> out) {
    SHARED(float, code, 16);
    if (threadIdx.x < 16) code[threadIdx.x] = CODE[threadIdx.x];
    sync_block();
    int expert = first + int(blockIdx.y), blocks = (count + BLOCK - 1) / BLOCK;
    ExpertScales scales(Scales{absmax, codes, nested, offsets, map}, expert, blocks);
    global<const uint8_t> from = packed + int64_t(expert) * (count / 2);
    global<bf16> to = out + int64_t(blockIdx.y * stride + start);
    for (int at = int(blockIdx.x * blockDim.x + threadIdx.x); at < count / 8; at += int(gridDim.x * blockDim.x)) {
        uint32_t eight = load_once<uint32_t>(from + int64_t(at) * 4);
        float scale = scales.of(at / (BLOCK / 8));
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
