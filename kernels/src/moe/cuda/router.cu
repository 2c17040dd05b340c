// From router logits to the experts of every token, their weights and the way back, and what the load-balancing loss needs.
//
// A warp has one token. All of it is bound by reading the logits (2 KB a token with 512 experts); choosing 10 of 512 takes about
// as long as reading them does.
#include "router_row.h"

namespace {

using namespace router;

constexpr int TOKENS = 8;
// Tokens of a block: the pieces of the counting sort.
constexpr int CHUNK = WARPS * TOKENS;

DEVICE uint64_t warp_max(uint64_t value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = max(value, shuffle_xor(value, mask));
    return value;
}

// Whole numbers in the order of the logits; what is no number is below all of them, and 0 is taken.
DEVICE uint32_t ordered(float logit) {
    uint32_t bits = float_bits(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 1;
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The largest that is left; among equal ones the first. Its key in the high half, the complement of its expert in the low.
template <int EACH> DEVICE uint64_t largest(const uint32_t (&keys)[EACH], int lane) {
    uint32_t best = keys[0];
    int expert = lane;
#pragma unroll
    for (int i = 1; i < EACH; i++) {
        if (keys[i] > best) {
            best = keys[i];
            expert = lane + 32 * i;
        }
    }
    return uint64_t(best) << 32 | (0xffffffffu - uint32_t(expert));
}

template <int EACH>
DEVICE void choose(global<const float> logits, int tokens, int experts, int per_token, int normalise, global<uint32_t> chosen,
                   global<float> weights, global<uint32_t> counts) {
    SHARED(uint32_t, histogram, 32 * EACH);
    for (int i = threadIdx.x; i < experts; i += blockDim.x) histogram[i] = 0;
    sync_block();
    int lane = threadIdx.x % 32;
    int first = int(blockIdx.x) * CHUNK + int(threadIdx.x) / 32 * TOKENS;
    for (int token = first; token < min(first + TOKENS, tokens); token++) {
        global<const float> row_logits = logits + int64_t(token) * experts;
        Row<EACH> row(row_logits, experts, lane);
        uint32_t keys[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) keys[i] = lane + 32 * i < experts ? ordered(row.values[i]) : 0;
        row.exponentiate();
        int mine = 0;
        uint64_t own = largest(keys, lane);
        for (int rank = 0; rank < per_token; rank++) {
            int expert = int(0xffffffffu - uint32_t(warp_max(own)));
            if (lane == rank) mine = expert;
            if (expert % 32 == lane) {
#pragma unroll
                for (int i = 0; i < EACH; i++) keys[i] = expert == lane + 32 * i ? 0 : keys[i];
                own = largest(keys, lane);
            }
        }
        bool has = lane < per_token;
        float weight = has ? expf(row_logits[mine] - row.top) / row.sum : 0.0f;
        float all = warp_sum(weight);
        if (has) {
            int64_t slot = int64_t(token) * per_token + lane;
            chosen[slot] = uint32_t(mine);
            weights[slot] = normalise ? weight / all : weight;
            atomic_add(&histogram[mine], 1u);
        }
    }
    sync_block();
    for (int i = threadIdx.x; i < experts; i += blockDim.x) counts[int64_t(blockIdx.x) * experts + i] = histogram[i];
}

// w_j = p_j / P, where P is the sum of the chosen or 1:  dp_j = (dw_j - sum w dw) / P (or dw_j);  the load-balancing loss adds
// factor * valid * share_e to every dp_e;  dlogit_e = p_e (dp_e - sum p dp).
template <int EACH>
DEVICE void weights_backward(global<const float> logits, global<const uint32_t> chosen, global<const float> d_weights,
                             int normalise, global<const float> shares, global<const float> valid, float factor, int tokens,
                             int experts, int per_token, global<float> wide, global<bf16> narrow) {
    int lane = threadIdx.x % 32;
    int step = int(gridDim.x) * WARPS;
    for (int token = int(blockIdx.x) * WARPS + int(threadIdx.x) / 32; token < tokens; token += step) {
        global<const float> row_logits = logits + int64_t(token) * experts;
        Row<EACH> row(row_logits, experts, lane);
        row.exponentiate();
        bool has = lane < per_token;
        int64_t slot = int64_t(token) * per_token + (has ? lane : 0);
        int expert = int(chosen[slot]);
        float p = has ? expf(row_logits[expert] - row.top) / row.sum : 0.0f;
        float gradient = has ? float(d_weights[slot]) : 0.0f;
        if (normalise) {
            float all = warp_sum(p);
            float shift = warp_sum(p * gradient) / all;
            gradient = (gradient - shift) / all;
        }
        float of_balance = shares ? factor * (valid ? float(valid[token]) : 1.0f) : 0.0f;
        float dp[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            dp[i] = shares && lane + 32 * i < experts ? of_balance * shares[lane + 32 * i] : 0.0f;
        }
        for (int choice = 0; choice < per_token; choice++) {
            int at = shuffle(expert, choice);
            float added = shuffle(gradient, choice);
#pragma unroll
            for (int i = 0; i < EACH; i++) dp[i] += at == lane + 32 * i ? added : 0.0f;
        }
        float mean = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            row.values[i] /= row.sum;
            mean += row.values[i] * dp[i];
        }
        mean = warp_sum(mean);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = lane + 32 * i;
            if (at >= experts) continue;
            float result = row.values[i] * (dp[i] - mean);
            if (wide) wide[int64_t(token) * experts + at] = result;
            if (narrow) narrow[int64_t(token) * experts + at] = to_bf16(result);
        }
    }
}

// Sums of probabilities over the real tokens of a chunk, and counts of their choices.
template <int EACH>
DEVICE void load_sums(global<const float> logits, global<const uint32_t> chosen, global<const float> valid, int tokens,
                      int experts, int per_token, global<float> sums, global<uint32_t> counts) {
    SHARED(float, by_warp, WARPS * 32 * EACH);
    int lane = threadIdx.x % 32, warp = int(threadIdx.x) / 32;
    int first = int(blockIdx.x) * CHUNK + warp * TOKENS;
    float all[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) all[i] = 0;
    for (int token = first; token < min(first + TOKENS, tokens); token++) {
        if (valid && float(valid[token]) == 0.0f) continue;
        Row<EACH> row(logits + int64_t(token) * experts, experts, lane);
        row.exponentiate();
#pragma unroll
        for (int i = 0; i < EACH; i++) all[i] += row.values[i] / row.sum;
        if (lane < per_token) atomic_add(&counts[chosen[int64_t(token) * per_token + lane]], 1u);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) by_warp[(warp * EACH + i) * 32 + lane] = all[i];
    sync_block();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += by_warp[w * EACH * 32 + expert];
        sums[int64_t(blockIdx.x) * experts + expert] = sum;
    }
}

}  // namespace

#define CHOOSE(name, each)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                      \
        name(global<const float> logits, int tokens, int experts, int per_token, int normalise, global<uint32_t> chosen,   \
             global<float> weights, global<uint32_t> counts) {                                                             \
        choose<each>(logits, tokens, experts, per_token, normalise, chosen, weights, counts);                              \
    }
CHOOSE(moe_choose_128, 4)
KERNEL(moe_choose_128)
CHOOSE(moe_choose_512, 16)
KERNEL(moe_choose_512)
CHOOSE(moe_choose_1024, 32)
KERNEL(moe_choose_1024)

#define WEIGHTS_BACKWARD(name, each)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                                   \
        name(global<const float> logits, global<const uint32_t> chosen, global<const float> d_weights, int normalise,      \
             global<const float> shares, global<const float> valid, float factor, int tokens, int experts, int per_token,  \
             global<float> wide, global<bf16> narrow) {                                                                    \
        weights_backward<each>(logits, chosen, d_weights, normalise, shares, valid, factor, tokens, experts, per_token,    \
                               wide, narrow);                                                                              \
    }
WEIGHTS_BACKWARD(moe_weights_backward_128, 4)
KERNEL(moe_weights_backward_128)
WEIGHTS_BACKWARD(moe_weights_backward_512, 16)
KERNEL(moe_weights_backward_512)
WEIGHTS_BACKWARD(moe_weights_backward_1024, 32)
KERNEL(moe_weights_backward_1024)

#define LOAD_SUMS(name, each)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                      \
        name(global<const float> logits, global<const uint32_t> chosen, global<const float> valid, int tokens,             \
             int experts, int per_token, global<float> sums, global<uint32_t> counts) {                                    \
        load_sums<each>(logits, chosen, valid, tokens, experts, per_token, sums, counts);                                  \
    }
LOAD_SUMS(moe_load_sums_128, 4)
KERNEL(moe_load_sums_128)
LOAD_SUMS(moe_load_sums_512, 16)
KERNEL(moe_load_sums_512)
LOAD_SUMS(moe_load_sums_1024, 32)
KERNEL(moe_load_sums_1024)

// Adds the sums of all chunks, in their order.
extern "C" __global__ void __launch_bounds__(256)
    moe_load_total(global<const float> sums, int chunks, int experts, global<float> total) {
    int expert = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (expert >= experts) return;
    float sum = 0;
#pragma unroll 8
    for (int chunk = 0; chunk < chunks; chunk++) sum += sums[int64_t(chunk) * experts + expert];
    total[expert] += sum;
}
KERNEL(moe_load_total)

// share_e = E * count_e / rows^2, and the loss sum_e share_e * total_e.
extern "C" __global__ void __launch_bounds__(256)
    moe_shares(global<const uint32_t> counts, global<const float> totals, int experts, float rows, global<float> shares,
               global<float> loss) {
    SHARED(float, by_warp, WARPS);
    float own = 0;
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        float share = float(experts) * (float(counts[expert]) / rows) / rows;
        shares[expert] = share;
        own += share * totals[expert];
    }
    own = warp_sum(own);
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = own;
    sync_block();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += by_warp[w];
        loss[0] = sum;
    }
}
KERNEL(moe_shares)
