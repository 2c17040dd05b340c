// What is small beside the products: the loss of every row from the exponents and sums of its groups of words, and the gradient
// of every row from the products' parts.
//
// cross_entropy_rows reads 8 bytes for every row and 64 words, 1/16 of the terms, once, and the exponents once more (from L2).
// cross_entropy_combine reads the parts, 4 bytes for each value and part. Both are below a hundredth of the products' time.
#include "dropout.h"

namespace {

constexpr int LANES = 32;
constexpr int SLICES = 32;
constexpr float LEAST = -1e30f;
constexpr int MOST_RANK = 256;

// Sum 2^exponent · total of two.
DEVICE void join(float& exponent, float& total, float other_exponent, float other_total) {
    float greater = fmaxf(exponent, other_exponent);
    total = total * fast_exp2(exponent - greater) + other_total * fast_exp2(other_exponent - greater);
    exponent = greater;
}

// Where gradient.cu looks for the factor of a row in a group of words: of 64 rows those of a thread are next to each other.
DEVICE int64_t factor_place(int group, int rows, int row) {
    int within = row % 64;
    return (int64_t(group) * (rows / 64) + row / 64) * 64 + within % 8 * 8 + within / 16 * 2 + within / 8 % 2;
}

// 2^by, which is whole and at most 0.
DEVICE bf16 power(float by) {
    int exponent = int(fmaxf(by, -127.0f));
    return to_bf16(bits_float(exponent < -126 ? 0 : uint32_t(127 + exponent) << 23));
}

}  // namespace

// A lane for a row, a warp for every 32nd group. Leaves the loss of each row, the factor of its terms, the gradient of its
// target's logit, and for each group 2^(e - greatest e).
extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy_rows(global<const float> groups, int group_count, int rows, int count, global<const float> target_logits,
                       global<float> losses, global<float> row_factors, global<float> target_gradients, global<bf16> factors) {
    SHARED(float2, shares, LANES * SLICES);
    int lane = threadIdx.x % LANES, slice = threadIdx.x / LANES, row = blockIdx.x * LANES + lane;
    float exponent = LEAST, total = 0;
    for (int group = slice; group < group_count; group += SLICES) {
        float2 own = load<float2>(groups + 2 * (int64_t(group) * rows + row));
        join(exponent, total, own.x, own.y);
    }
    shares[threadIdx.x] = make_float2(exponent, total);
    sync_block();
    exponent = LEAST, total = 0;
    for (int other = 0; other < SLICES; other++) {
        float2 own = shares[other * LANES + lane];
        join(exponent, total, own.x, own.y);
    }
    if (slice == 0 && row < count) {
        float target = target_logits[row];
        losses[row] = (exponent - target) * LN_2 + logf(total);
        row_factors[row] = 1.0f / total;
        target_gradients[row] = fast_exp2(target - exponent) / total - 1.0f;
    }
    if (!factors) return;
    for (int group = slice; group < group_count; group += SLICES) {
        float own = groups[2 * (int64_t(group) * rows + row)];
        factors[factor_place(group, rows, row)] = power(own - exponent);
    }
}
KERNEL(cross_entropy_rows)

// A block for a row: scale · (factor · sum of parts + target's gradient · W[target]).
//   parts [part_count, rows, width]
// With `rank` the gradient of the pair's inner values is made in the same way from inner_parts [part_count, rows, rank] and
// b [*, stride_b], left in d_inner [*, stride_d] with zeros behind the rank, and goes on through a [rank, width] and the mask.
extern "C" __global__ void __launch_bounds__(256)
    cross_entropy_combine(global<const float> parts, int part_count, int rows, int width, global<const int> list,
                          global<const int> targets, global<const float> row_factors, global<const float> target_gradients,
                          global<const bf16> weight, float scale, global<bf16> d_hidden, global<const float> inner_parts,
                          global<const bf16> a, global<const bf16> b, int stride_b, int rank, float inner_scale,
                          uint32_t threshold, uint64_t key, global<bf16> d_inner, int stride_d) {
    SHARED(float, inner, MOST_RANK);
    int row = blockIdx.x;
    float factor = scale * row_factors[row], of_target = scale * target_gradients[row];
    if (rank > 0) {
        for (int j = threadIdx.x; j < stride_d; j += blockDim.x) {
            float sum = 0;
            if (j < rank) {
                for (int part = 0; part < part_count; part++) sum += inner_parts[(int64_t(part) * rows + row) * rank + j];
                sum = inner_scale * (factor * sum + of_target * to_float(b[int64_t(targets[row]) * stride_b + j]));
                inner[j] = sum;
            }
            d_inner[int64_t(row) * stride_d + j] = to_bf16(sum);
        }
        sync_block();
    }
    const Dropout dropout{threshold, key};
    global<const bf16> words = weight + int64_t(targets[row]) * width;
    int64_t first = int64_t(list[row]) * width;
    for (int at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
        float sum[4] = {};
        for (int part = 0; part < part_count; part++) {
            float4 own = load<float4>(parts + (int64_t(part) * rows + row) * width + at);
            sum[0] += own.x, sum[1] += own.y, sum[2] += own.z, sum[3] += own.w;
        }
        uint2 word = load<uint2>(words + at);
        const float of_word[4] = {low(word.x), high(word.x), low(word.y), high(word.y)};
        float through[4] = {};
        for (int j = 0; j < rank; j++) {
            uint2 four = load<uint2>(a + int64_t(j) * width + at);
            through[0] += inner[j] * low(four.x), through[1] += inner[j] * high(four.x);
            through[2] += inner[j] * low(four.y), through[3] += inner[j] * high(four.y);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool kept = threshold == 0 || dropout.keeps(uint64_t(first + at + i));
            sum[i] = factor * sum[i] + of_target * of_word[i] + (kept ? through[i] : 0.0f);
        }
        store(d_hidden + first + at, make_uint2(pack(sum[0], sum[1]), pack(sum[2], sum[3])));
    }
}
KERNEL(cross_entropy_combine)

// Adds all losses to a sum in f64, in one order.
extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy_sum(global<const float> losses, int count, global<uint64_t> sum) {
    SHARED(double, warps, 32);
    double own = 0;
    for (int at = threadIdx.x; at < count; at += blockDim.x) own += losses[at];
#pragma unroll
    for (int by = 16; by > 0; by /= 2) own += shuffle_xor(own, by);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
    sync_block();
    if (threadIdx.x != 0) return;
    double all = as<double>(sum)[0];
    for (int warp = 0; warp < 32; warp++) all += warps[warp];
    as<double>(sum)[0] = all;
}
KERNEL(cross_entropy_sum)
