// The products of routed experts whose weights are bf16 (decoded into a workspace, or stored so), and the sums of tokens.
//
// Tiles of 128 rows (or 64, where experts have few) by 128 columns, two blocks of 4 warps a multiprocessor (gemm.h says why).
#include "experts.h"

namespace {

using Large = gemm::Tile<128, 128, 32, 2, 2, 4>;
using Small = gemm::Tile<64, 128, 32, 2, 2, 6>;

}  // namespace

EXPERTS_GATE_UP(moe_gate_up_large, Large, experts::InBf16)
KERNEL(moe_gate_up_large)
EXPERTS_GATE_UP(moe_gate_up_small, Small, experts::InBf16)
KERNEL(moe_gate_up_small)
EXPERTS_DOWN(moe_down_large, Large, experts::InBf16)
KERNEL(moe_down_large)
EXPERTS_DOWN(moe_down_small, Small, experts::InBf16)
KERNEL(moe_down_small)
EXPERTS_DOWN_BACKWARD(moe_down_backward_large, Large, experts::InBf16, true)
KERNEL(moe_down_backward_large)
EXPERTS_DOWN_BACKWARD(moe_down_backward_small, Small, experts::InBf16, true)
KERNEL(moe_down_backward_small)
EXPERTS_GATE_UP_BACKWARD(moe_gate_up_backward_large, Large, experts::InBf16, true)
KERNEL(moe_gate_up_backward_large)
EXPERTS_GATE_UP_BACKWARD(moe_gate_up_backward_small, Small, experts::InBf16, true)
KERNEL(moe_gate_up_backward_small)

// The gradient of a slot's routing weight: the shares of its row, in their order.
extern "C" __global__ void __launch_bounds__(256)
    moe_sum_shares(global<const float> shares, int pieces, global<const uint32_t> rows, int slots, global<float> d_weights) {
    int slot = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (slot >= slots) return;
    int64_t at = int64_t(rows[slot]) * pieces;
    float sum = 0;
    for (int piece = 0; piece < pieces; piece++) sum += shares[at + piece];
    d_weights[slot] = sum;
}
KERNEL(moe_sum_shares)

// out[token] (+)= sum over its choices, in their order, of weight * values[row]. A thread has 8 columns of a token: 16 bytes of
// each row, and as many rows in flight as the token has choices. Bound by reading the rows once.
extern "C" __global__ void __launch_bounds__(256)
    moe_combine(global<const bf16> values, global<const float> weights, global<const uint32_t> rows, int tokens, int per_token,
                int width, int accumulate, global<bf16> out) {
    int chunks = width / 8;
    int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; item < int64_t(tokens) * chunks; item += step) {
        int64_t token = item / chunks;
        int column = int(item % chunks) * 8;
        float sum[8];
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] = 0;
        auto add = [&](uint4 eight, float weight) {
            uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[2 * i] += weight * low(pairs[i]);
                sum[2 * i + 1] += weight * high(pairs[i]);
            }
        };
        if (accumulate) add(load<uint4>(out + token * width + column), 1.0f);
#pragma unroll 5
        for (int choice = 0; choice < per_token; choice++) {
            int64_t slot = token * per_token + choice;
            add(load_once<uint4>(values + int64_t(rows[slot]) * width + column), weights ? float(weights[slot]) : 1.0f);
        }
        store(out + token * width + column, make_uint4(pack(sum[0], sum[1]), pack(sum[2], sum[3]), pack(sum[4], sum[5]), pack(sum[6], sum[7])));
    }
}
KERNEL(moe_combine)
