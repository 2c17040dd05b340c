// Frozen linear layers with weights in NF4, decoded inside of the product: y = x W^T and dx = dy W, each with the low-rank
// update as more columns of k before it (see gemm.cu, which does the same for weights in bf16).
//
// A block of 128 rows decodes every weight once, so the decoding is shared by 128 rows: 3.3 instructions a value beside its 128
// multiply-adds. A warp issues some 620 instructions for 128 mma: on an A100, where these take 1024 cycles of a quarter of a
// multiprocessor, that hides behind them while two blocks take turns; where they take 512, issuing is what it waits for. A bf16
// copy of the weights costs 2.5 bytes a value and 2 more to read it, whatever the rows: with many of them it is cheaper.
#include "nf4.h"
#include "product.h"

namespace {

using Large = gemm::Tile<128, 128, 64, 2, 2, 2>;
using Small = gemm::Tile<64, 64, 64, 2, 2, 3>;

// FORWARD: W [n, k]; else W [k, n].
template <class T, bool FORWARD, bool DROPS>
DEVICE void run(const gemm::Pair& first, const Dropout& dropout, global<const bf16> x, int stride, const nf4::Stored& stored, int m,
                int n, int k, const gemm::Out& out) {
    DYNAMIC_SHARED(bf16, stages);
    auto place = gemm::placed(int(blockIdx.x), (m + T::M - 1) / T::M, (n + T::N - 1) / T::N);
    int row = place.row * T::M, column = place.column * T::N;
    gemm::Few<true, T, T::M> a1{first.a, first.stride_a, m, first.k, row};
    gemm::Few<FORWARD, T, T::N> b1{first.b, first.stride_b, n, first.k, column};
    gemm::AlongK<T, T::M> a2(x, stride, k, gemm::EveryRow{m}, row);
    nf4::Operand<T, T::N, FORWARD> b2(stored, 0, FORWARD ? n : k, FORWARD ? k : n, column);
    typename T::Sums sum;
    gemm::clear<T>(sum);
    gemm::joined<DROPS, T>(sum, a1, b1, (first.k + T::K - 1) / T::K, a2, b2, (k + T::K - 1) / T::K, stages, dropout, row, column, m, n);
    gemm::finish<T>(sum, out, row, column, m, n);
}

}  // namespace

#define LINEAR(name, tile, blocks, forward, drops)                                                                            \
    extern "C" __global__ void __launch_bounds__(tile::THREADS, blocks)                                                       \
        name(global<const bf16> a1, global<const bf16> b1, int k1, int stride_a1, int stride_b1, uint32_t threshold,          \
             uint64_t key, global<const bf16> x, int stride_x, global<const uint8_t> packed, global<const float> absmax,      \
             global<const uint8_t> codes, global<const float> nested, global<const float> map, float offset, int m, int n,    \
             int k, global<const float> bias, global<bf16> y, int accumulate, int together) {                                 \
        gemm::Pair first{a1, b1, k1, stride_a1, stride_b1};                                                                   \
        nf4::Stored stored{packed, absmax, codes, nested, map, offset};                                                       \
        gemm::Out out{y, {}, bias, n, 1.0f, accumulate, together};                                                            \
        run<tile, forward, drops>(first, Dropout{threshold, key}, x, stride_x, stored, m, n, k, out);                         \
    }

LINEAR(linear_forward_large, Large, 2, true, false)
KERNEL(linear_forward_large)
LINEAR(linear_forward_small, Small, 4, true, false)
KERNEL(linear_forward_small)

LINEAR(linear_gradient_large, Large, 2, false, false)
KERNEL(linear_gradient_large)
LINEAR(linear_gradient_small, Small, 4, false, false)
KERNEL(linear_gradient_small)
LINEAR(linear_gradient_drop_large, Large, 2, false, true)
KERNEL(linear_gradient_drop_large)
LINEAR(linear_gradient_drop_small, Small, 4, false, true)
KERNEL(linear_gradient_drop_small)
