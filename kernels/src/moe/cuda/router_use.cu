// How experts are used, for people who watch a run: each one's tokens, and how sure routers are.
//
// Bound by reading the logits once more, a thousandth of a layer's time. Blocks are fixed shares of the tokens, and each adds to a
// place of its own: sums come in one order, without a second launch.
#include "router_row.h"

namespace {

using namespace router;

// Adds choices of real tokens to `counts`, and the entropies `ln S - sum p d` of their softmax (d = logit - largest,
// p = e^d / S) to this block's place in `entropies`.
template <int EACH>
DEVICE void use(global<const float> logits, global<const uint32_t> chosen, global<const float> valid, int tokens, int experts,
                int per_token, global<uint32_t> counts, global<uint64_t> entropies) {
    SHARED(double, by_warp, WARPS);
    int lane = threadIdx.x % 32, warp = int(threadIdx.x) / 32;
    double own = 0;
    for (int token = int(blockIdx.x) * WARPS + warp; token < tokens; token += int(gridDim.x) * WARPS) {
        if (valid && float(valid[token]) == 0.0f) continue;
        Row<EACH> row(logits + int64_t(token) * experts, experts, lane);
        float sum = 0, weighted = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            float difference = row.values[i] - row.top;
            float weight = expf(difference);
            sum += weight;
            // What is infinitely far below has no weight, and no product with it.
            weighted += weight > 0.0f ? weight * difference : 0.0f;
        }
        sum = warp_sum(sum);
        own += logf(sum) - warp_sum(weighted) / sum;
        if (lane < per_token) atomic_add(&counts[chosen[int64_t(token) * per_token + lane]], 1u);
    }
    if (lane == 0) by_warp[warp] = own;
    sync_block();
    if (threadIdx.x != 0) return;
    double all = as<double>(entropies)[blockIdx.x];
    for (int w = 0; w < WARPS; w++) all += by_warp[w];
    as<double>(entropies)[blockIdx.x] = all;
}

}  // namespace

#define USE(name, each)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        name(global<const float> logits, global<const uint32_t> chosen, global<const float> valid, int tokens, int experts, \
             int per_token, global<uint32_t> counts, global<uint64_t> entropies) {                                          \
        use<each>(logits, chosen, valid, tokens, experts, per_token, counts, entropies);                                    \
    }
USE(moe_use_128, 4)
KERNEL(moe_use_128)
USE(moe_use_512, 16)
KERNEL(moe_use_512)
USE(moe_use_1024, 32)
KERNEL(moe_use_1024)
