// The low-rank sides of a linear layer: down = factor * drop(x) A^T and up = factor * dy B, both [rows, rank], and the gradients
// of A and B.
//
// All of it is reading: x or dy goes through once, for 2 rank operations a value, where tensor cores could do some 400 in that
// time. So a block of `down` has few rows (32: 128 blocks for 4096 of them), its warps share k out, and 3 stages of 12 KB are
// under way in each of the blocks of a multiprocessor. Gradients sum over rows: some 256 rows to a block, which leaves its sums
// to a second kernel that adds them in their order. Dropout's mask is computed where x is read anyway, once for each value.
#include "product.h"

namespace {

// Changes values of an operand by a mask: `step` from k to k + 1, `across` from one row or column to the next.
template <class Base> struct Dropped : Base {
    static constexpr bool CHANGES = true;
    Dropout dropout;
    uint64_t first;
    uint32_t across, step;

    DEVICE Dropped(const Base& base, const Dropout& dropout, uint64_t first, uint32_t across, uint32_t step)
        : Base(base), dropout(dropout), first(first), across(across), step(step) {}

    DEVICE uint32_t changed(uint32_t pair, int outer, int k) const {
        if (dropout.threshold == 0) return pair;
        uint64_t index = first + uint64_t(uint32_t(outer)) * across + uint64_t(uint32_t(k)) * step;
        return kept(pair, dropout.keeps(index), dropout.keeps(index + step));
    }
};

template <int RANK> using Down = gemm::Tile<32, RANK, 128, 2, 1, RANK == 64 ? 3 : 4, 2>;

// out [m, stride] = factor * x W, W along k as A lies, or across it as B does.
template <class T, bool ALONG_K, bool DROPS>
DEVICE void down(global<const bf16> x, int stride_x, global<const bf16> w, int stride_w, int m, int rank, int k, float factor,
                 const Dropout& dropout, global<bf16> out, int stride) {
    DYNAMIC_SHARED(bf16, stages);
    int columns = (rank + T::N - 1) / T::N;
    int row = int(blockIdx.x) / columns * T::M, column = int(blockIdx.x) % columns * T::N;
    gemm::AlongK<T, T::M> a(x, stride_x, k, gemm::EveryRow{m}, row);
    auto b = gemm::operand<ALONG_K, T, T::N>(w, stride_w, rank, k, column);
    int tiles = (k + T::K - 1) / T::K;
    typename T::Sums sum;
    gemm::clear<T>(sum);
    if constexpr (DROPS) {
        Dropped<decltype(a)> dropped(a, dropout, uint64_t(uint32_t(row)) * uint32_t(k), uint32_t(k), 1);
        gemm::product<T>(sum, dropped, b, 0, tiles, stages);
    } else {
        gemm::product<T>(sum, a, b, 0, tiles, stages);
    }
    gemm::finish<T>(sum, gemm::Out{out, {}, {}, stride, factor, 0, 1}, row, column, m, stride);
}

template <int RANK> using Gradient = gemm::Tile<RANK, 128, 64, 1, 4, RANK == 64 ? 3 : 4>;

// One of two gradients: sums[rank, width] of s^T z over some rows, s [m, rank] and z [m, width].
struct Side {
    global<const bf16> s, z;
    global<float> sums;
    int stride_z, width;
};

// Block (tile, share of the rows, which side).
template <class T, bool DROPS>
DEVICE void gradient(const Side& side, const Dropout& dropout, int m, int rank, int stride_s, int rows) {
    DYNAMIC_SHARED(bf16, stages);
    int ranks = (rank + T::M - 1) / T::M;
    int row = int(blockIdx.x) % ranks * T::M, column = int(blockIdx.x) / ranks * T::N;
    if (column >= side.width) return;
    int64_t begin = int64_t(blockIdx.y) * rows;
    int count = min(rows, int(m - begin));
    gemm::AcrossK<T, T::M> a(side.s + begin * stride_s, stride_s, rank, gemm::EveryRow{count}, row);
    gemm::AcrossK<T, T::N> b(side.z + begin * side.stride_z, side.stride_z, side.width, gemm::EveryRow{count}, column);
    int tiles = (count + T::K - 1) / T::K;
    typename T::Sums sum;
    gemm::clear<T>(sum);
    if constexpr (DROPS) {
        uint32_t width = uint32_t(side.width);
        Dropped<decltype(b)> dropped(b, dropout, uint64_t(begin) * width + uint32_t(column), 1, width);
        gemm::product<T>(sum, a, dropped, 0, tiles, stages);
    } else {
        gemm::product<T>(sum, a, b, 0, tiles, stages);
    }
    global<float> out = side.sums + int64_t(blockIdx.y) * rank * side.width;
    gemm::finish<T>(sum, gemm::Out{{}, out, {}, side.width, 1.0f, 0, side.width % 2 == 0}, row, column, rank, side.width);
}

}  // namespace

#define DOWN(name, rank_, along_k, drops)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                                     \
        name(global<const bf16> x, int stride_x, global<const bf16> w, int stride_w, int m, int rank, int k, float factor,   \
             uint32_t threshold, uint64_t key, global<bf16> out, int stride) {                                               \
        down<Down<rank_>, along_k, drops>(x, stride_x, w, stride_w, m, rank, k, factor, Dropout{threshold, key}, out, stride); \
    }

DOWN(lora_down_16, 16, true, false)
KERNEL(lora_down_16)
DOWN(lora_down_32, 32, true, false)
KERNEL(lora_down_32)
DOWN(lora_down_64, 64, true, false)
KERNEL(lora_down_64)
DOWN(lora_down_drop_16, 16, true, true)
KERNEL(lora_down_drop_16)
DOWN(lora_down_drop_32, 32, true, true)
KERNEL(lora_down_drop_32)
DOWN(lora_down_drop_64, 64, true, true)
KERNEL(lora_down_drop_64)
DOWN(lora_up_16, 16, false, false)
KERNEL(lora_up_16)
DOWN(lora_up_32, 32, false, false)
KERNEL(lora_up_32)
DOWN(lora_up_64, 64, false, false)
KERNEL(lora_up_64)

#define GRADIENT(name, rank_, drops)                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                                     \
        name(global<const bf16> up, global<const bf16> x, int stride_x, int inputs, global<const bf16> down,                 \
             global<const bf16> dy, int stride_dy, int outputs, global<float> a_sums, global<float> b_sums, int m, int rank,  \
             int stride, int rows, uint32_t threshold, uint64_t key) {                                                       \
        bool second = blockIdx.z == 1;                                                                                       \
        Side side = second ? Side{down, dy, b_sums, stride_dy, outputs} : Side{up, x, a_sums, stride_x, inputs};             \
        gradient<Gradient<rank_>, drops>(side, Dropout{second ? 0 : threshold, key}, m, rank, stride, rows);                 \
    }

GRADIENT(lora_gradient_16, 16, false)
KERNEL(lora_gradient_16)
GRADIENT(lora_gradient_32, 32, false)
KERNEL(lora_gradient_32)
GRADIENT(lora_gradient_64, 64, false)
KERNEL(lora_gradient_64)
GRADIENT(lora_gradient_drop_16, 16, true)
KERNEL(lora_gradient_drop_16)
GRADIENT(lora_gradient_drop_32, 32, true)
KERNEL(lora_gradient_drop_32)
GRADIENT(lora_gradient_drop_64, 64, true)
KERNEL(lora_gradient_drop_64)

// a [rank, inputs] += the shares of a_sums in their order; b [outputs, rank] += those of b_sums, which lie [rank, outputs].
extern "C" __global__ void __launch_bounds__(256)
    lora_add(global<const float> a_sums, global<const float> b_sums, int rank, int inputs, int outputs, int shares, global<float> a,
             global<float> b) {
    int64_t of_a = int64_t(rank) * inputs, of_b = int64_t(rank) * outputs;
    for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < of_a + of_b; at += int64_t(gridDim.x) * blockDim.x) {
        bool second = at >= of_a;
        int64_t own = second ? at - of_a : at, all = second ? of_b : of_a;
        global<const float> sums = second ? b_sums : a_sums;
        float sum = 0;
        for (int share = 0; share < shares; share++) sum += sums[share * all + own];
        if (second) b[own % outputs * rank + own / outputs] += sum;
        else a[own] += sum;
    }
}
KERNEL(lora_add)
