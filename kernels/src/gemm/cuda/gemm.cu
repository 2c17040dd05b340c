// out = alpha (drop(A1 B1) + A B) [+ bias] [+ out]: two pairs of operands one behind the other along k. The first pair is the
// low-rank update of a linear layer, for which it is a few more columns of k and nothing else.
//
// 2 m n k operations for 2 (m k + n k + m n) bytes: from some 200 rows on, tensor cores are what it waits for. See gemm.h for
// the large tile. The small one (4 times as many blocks, 4 to a multiprocessor) is for products that would leave
// multiprocessors without work; they wait for memory more than for tensor cores.
#include "product.h"

namespace {

using Large = gemm::Tile<128, 128, 32, 2, 2, 4>;
using Small = gemm::Tile<64, 64, 64, 2, 2, 3>;

template <class T, bool A_ALONG_K, bool B_ALONG_K, bool DROPS>
DEVICE void run(const gemm::Pair& first, const Dropout& dropout, const gemm::Pair& second, int m, int n, const gemm::Out& out) {
    DYNAMIC_SHARED(bf16, stages);
    auto place = gemm::placed(int(blockIdx.x), (m + T::M - 1) / T::M, (n + T::N - 1) / T::N);
    int row = place.row * T::M, column = place.column * T::N;
    gemm::Few<A_ALONG_K, T, T::M> a1{first.a, first.stride_a, m, first.k, row};
    gemm::Few<B_ALONG_K, T, T::N> b1{first.b, first.stride_b, n, first.k, column};
    auto a2 = gemm::operand<A_ALONG_K, T, T::M>(second.a, second.stride_a, m, second.k, row);
    auto b2 = gemm::operand<B_ALONG_K, T, T::N>(second.b, second.stride_b, n, second.k, column);
    typename T::Sums sum;
    gemm::clear<T>(sum);
    gemm::joined<DROPS, T>(sum, a1, b1, (first.k + T::K - 1) / T::K, a2, b2, (second.k + T::K - 1) / T::K, stages, dropout, row,
                           column, m, n);
    gemm::finish<T>(sum, out, row, column, m, n);
}

}  // namespace

#define PRODUCT(name, tile, blocks, a_along_k, b_along_k, drops)                                                              \
    extern "C" __global__ void __launch_bounds__(tile::THREADS, blocks)                                                       \
        name(global<const bf16> a1, global<const bf16> b1, int k1, int stride_a1, int stride_b1, uint32_t threshold,          \
             uint64_t key, global<const bf16> a, global<const bf16> b, int k, int stride_a, int stride_b, int m, int n,       \
             float alpha, global<const float> bias, global<bf16> narrow, global<float> wide, int stride, int accumulate,      \
             int together) {                                                                                                  \
        gemm::Pair first{a1, b1, k1, stride_a1, stride_b1}, second{a, b, k, stride_a, stride_b};                              \
        gemm::Out out{narrow, wide, bias, stride, alpha, accumulate, together};                                               \
        run<tile, a_along_k, b_along_k, drops>(first, Dropout{threshold, key}, second, m, n, out);                            \
    }

// x W^T
PRODUCT(gemm_rows_by_rows_large, Large, 2, true, true, false)
KERNEL(gemm_rows_by_rows_large)
PRODUCT(gemm_rows_by_rows_small, Small, 4, true, true, false)
KERNEL(gemm_rows_by_rows_small)

// dy W
PRODUCT(gemm_rows_by_columns_large, Large, 2, true, false, false)
KERNEL(gemm_rows_by_columns_large)
PRODUCT(gemm_rows_by_columns_small, Small, 4, true, false, false)
KERNEL(gemm_rows_by_columns_small)
PRODUCT(gemm_rows_by_columns_drop_large, Large, 2, true, false, true)
KERNEL(gemm_rows_by_columns_drop_large)
PRODUCT(gemm_rows_by_columns_drop_small, Small, 4, true, false, true)
KERNEL(gemm_rows_by_columns_drop_small)

// dy^T x
PRODUCT(gemm_columns_by_columns_large, Large, 2, false, false, false)
KERNEL(gemm_columns_by_columns_large)
PRODUCT(gemm_columns_by_columns_small, Small, 4, false, false, false)
KERNEL(gemm_columns_by_columns_small)

// A copy with rows of `stride` values, a multiple of 8; what is beyond `columns` becomes 0. For operands of odd widths.
extern "C" __global__ void __launch_bounds__(256)
    gemm_pad(global<const bf16> from, global<bf16> to, uint64_t rows, int columns, int from_stride, int stride) {
    int chunks = stride / 8;
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * uint64_t(chunks); at += step) {
        uint64_t row = at / uint64_t(chunks);
        int column = int(at % uint64_t(chunks)) * 8;
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            auto value = [&](int c) { return c < columns ? to_float(from[int64_t(row) * from_stride + c]) : 0.0f; };
            pairs[i] = pack(value(column + 2 * i), value(column + 2 * i + 1));
        }
        store(to + at * 8, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    }
}
KERNEL(gemm_pad)
