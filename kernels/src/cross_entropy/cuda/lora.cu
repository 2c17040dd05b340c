// A low-rank pair on the head: l = W h + B u with u = scale · A drop(h).
//
// What it adds to logits and to the gradient of the rows rides on the large products (logits.cu, gradient.cu). Here is the rest:
// u, and the gradients of A and B. That of B reads all terms once more, 2 bytes for 2 rank operations: memory sets its pace, one
// pass for each 32 of the rank. The others are a hundredth of that.
#include "dropout.h"
#include "gemm.h"

namespace {

using Down = gemm::Tile<64, 16, 64, 4, 1, 3>;
using ForA = gemm::Tile<16, 128, 64, 1, 4, 3>;
using ForB = gemm::Tile<128, 32, 32, 4, 1, 4>;

// Where the mask of a row of `hidden` begins.
struct Mask {
    Dropout dropout;
    global<const int> list;
    int count, width;

    DEVICE bool keeps(int row, int column) const {
        return row < count && dropout.keeps(uint64_t(list[row]) * uint32_t(width) + uint32_t(column));
    }
};

// Listed rows after their dropout, summed over their columns.
struct DroppedAlong : gemm::AlongK<Down, Down::M, gemm::ListedRows> {
    static constexpr bool CHANGES = true;
    Mask mask;
    int first;

    DEVICE DroppedAlong(global<const bf16> hidden, const Mask& mask, int first)
        : AlongK(hidden, mask.width, mask.width, {mask.list, mask.count}, first), mask(mask), first(first) {}

    DEVICE uint32_t changed(uint32_t pair, int outer, int k) const {
        if (mask.dropout.threshold == 0) return pair;
        // Not `kept`: two masks at a time are more registers than there are.
        return (mask.keeps(first + outer, k) ? pair & 0xffffu : 0) | (mask.keeps(first + outer, k + 1) ? pair & 0xffff0000u : 0);
    }
};

// The same, summed over the rows.
struct DroppedAcross : gemm::AcrossK<ForA, ForA::N, gemm::ListedRows> {
    static constexpr bool CHANGES = true;
    Mask mask;
    int first;

    DEVICE DroppedAcross(global<const bf16> hidden, const Mask& mask, int first)
        : AcrossK(hidden, mask.width, mask.width, {mask.list, mask.count}, first), mask(mask), first(first) {}

    DEVICE uint32_t changed(uint32_t pair, int outer, int k) const {
        if (mask.dropout.threshold == 0) return pair;
        return kept(pair, mask.keeps(k, first + outer), mask.keeps(k + 1, first + outer));
    }
};

// Rows of u times the factors that make probabilities of terms.
struct Weighted : gemm::AcrossK<ForB, ForB::N> {
    static constexpr bool CHANGES = true;
    global<const float> factors;
    int count;

    DEVICE Weighted(global<const bf16> inner, int stride, int rank, int count, int first, global<const float> factors)
        : AcrossK(inner, stride, rank, {count}, first), factors(factors), count(count) {}

    DEVICE uint32_t changed(uint32_t pair, int, int k) const {
        return pack(k < count ? low(pair) * factors[k] : 0, k + 1 < count ? high(pair) * factors[k + 1] : 0);
    }
};

}  // namespace

namespace gemm {

// Columns of terms, which are words, and what they are multiplied with: a power of 2 for each row and 64 words.
struct TermColumns : AcrossK<ForB, ForB::M> {
    global<const bf16> factors;

    // `factors`: those of the group of words that the warp has.
    DEVICE TermColumns(global<const bf16> terms, int columns, int count, int first, global<const bf16> factors)
        : AcrossK(terms, columns, columns, {count}, first), factors(factors) {}

    // Of rows k and k + 1, in the order in which gradient.cu reads them.
    DEVICE uint32_t pair(int k) const {
        int at = k / 64 * 64 + k % 8 * 8 + k % 64 / 16 * 2 + k % 64 / 8 % 2;
        return pack(to_float(factors[at]), to_float(factors[at + 8]));
    }
};

// As for other operands, and then times the factors.
template <class T> DEVICE void read_a(uint32_t (&to)[T::ROWS][4], TermColumns& a, shared<bf16> tile, int first, int step, int k) {
    int lane = int(threadIdx.x) % 32;
    const uint32_t factors[2] = {a.pair(k + lane % 4 * 2), a.pair(k + lane % 4 * 2 + 8)};
#pragma unroll
    for (int i = 0; i < T::ROWS; i++) {
        load_matrix_transposed(to[i], tile + swizzled<T::M>(16 * step + lane % 8 + lane / 16 * 8, (first + 16 * i) / 8 + lane / 8 % 2));
#pragma unroll
        for (int r = 0; r < 4; r++) to[i][r] = multiply_pairs(to[i][r], factors[r / 2]);
    }
}

}  // namespace gemm

// inner [count, stride] = scale · drop(rows of hidden) Aᵀ, and zeros behind the rank. `stride` is a multiple of 8.
extern "C" __global__ void __launch_bounds__(128)
    cross_entropy_lora_inner(global<const bf16> hidden, global<const int> list, int count, int width, global<const bf16> a,
                             int rank, float scale, uint32_t threshold, uint64_t key, global<bf16> inner, int stride) {
    DYNAMIC_SHARED(bf16, stages);
    int row = blockIdx.x * Down::M, column = blockIdx.y * Down::N;
    typename Down::Sums sum;
    gemm::clear<Down>(sum);
    DroppedAlong left(hidden, {{threshold, key}, list, count, width}, row);
    gemm::AlongK<Down, Down::N> right(a, width, width, {rank}, column);
    gemm::product<Down>(sum, left, right, 0, (width + Down::K - 1) / Down::K, stages);
    gemm::each_pair<Down>(sum, [&](int i, int j, float x, float y) {
        // Rows of A that are not there are zeros.
        if (row + i < count && column + j < stride) store(inner + int64_t(row + i) * stride + column + j, pack(scale * x, scale * y));
    });
}
KERNEL(cross_entropy_lora_inner)

// d_a [rank, width] += d_innerᵀ drop(rows of hidden).
extern "C" __global__ void __launch_bounds__(128)
    cross_entropy_lora_a(global<const bf16> d_inner, int stride, int rank, global<const bf16> hidden, global<const int> list,
                         int count, int width, uint32_t threshold, uint64_t key, global<float> d_a) {
    DYNAMIC_SHARED(bf16, stages);
    int row = blockIdx.y * ForA::M, column = blockIdx.x * ForA::N;
    typename ForA::Sums sum;
    gemm::clear<ForA>(sum);
    gemm::AcrossK<ForA, ForA::M> left(d_inner, stride, rank, {count}, row);
    DroppedAcross right(hidden, {{threshold, key}, list, count, width}, column);
    gemm::product<ForA>(sum, left, right, 0, (count + ForA::K - 1) / ForA::K, stages);
    gemm::each_pair<ForA>(sum, [&](int i, int j, float x, float y) {
        if (row + i >= rank) return;
        global<float> to = d_a + int64_t(row + i) * width + column + j;
        if (column + j < width) to[0] += x;
        if (column + j + 1 < width) to[1] += y;
    });
}
KERNEL(cross_entropy_lora_a)

// d_b [vocabulary, rank] += scale · probabilitiesᵀ inner, but for the targets' part.
extern "C" __global__ void __launch_bounds__(128, 3)
    cross_entropy_lora_b(global<const bf16> terms, global<const bf16> factors, global<const float> row_factors, int count, int rows,
                         int columns, global<const bf16> inner, int stride, int rank, int vocabulary, float scale, global<float> d_b) {
    DYNAMIC_SHARED(bf16, stages);
    int word = blockIdx.x * ForB::M, column = blockIdx.y * ForB::N;
    const gemm::Part<ForB> part;
    typename ForB::Sums sum;
    gemm::clear<ForB>(sum);
    gemm::TermColumns left(terms, columns, count, word, factors + int64_t((word + part.first_row) / 64) * rows);
    Weighted right(inner, stride, rank, count, column, row_factors);
    gemm::product<ForB>(sum, left, right, 0, (count + ForB::K - 1) / ForB::K, stages);
    gemm::each_pair<ForB>(sum, [&](int i, int j, float x, float y) {
        if (word + i >= vocabulary) return;
        global<float> to = d_b + int64_t(word + i) * rank + column + j;
        if (column + j < rank) to[0] += scale * x;
        if (column + j + 1 < rank) to[1] += scale * y;
    });
}
KERNEL(cross_entropy_lora_b)

// d_b of the targets += scale · gradient of the target's logit · inner. The first row with a target adds up all that have it.
extern "C" __global__ void __launch_bounds__(32)
    cross_entropy_lora_targets(global<const int> targets, int count, global<const float> gradients, global<const bf16> inner,
                               int stride, int rank, float scale, global<float> d_b) {
    int row = blockIdx.x, target = targets[row];
    for (int other = 0; other < row; other++) {
        if (targets[other] == target) return;
    }
    for (int j = threadIdx.x; j < rank; j += 32) {
        float sum = 0;
        for (int other = row; other < count; other++) {
            if (targets[other] == target) sum += gradients[other] * to_float(inner[int64_t(other) * stride + j]);
        }
        d_b[int64_t(target) * rank + j] += scale * sum;
    }
}
KERNEL(cross_entropy_lora_targets)
