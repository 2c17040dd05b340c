// The low-rank updates of routed experts: copies for the products, x A^T and dy B, and the gradients of A and B.
//
// Ranks are padded with zeros to a multiple of 16, the smallest that tensor cores take. The products are bound by reading the
// wide side once (rows come out of L2 where tokens share them): 128 rows or columns a block with 64 of k at a time, 3 stages
// ahead. Gradients of an expert are summed over its rows by one block for each 128 columns, in the order of rows.
#include "grouped.h"

using namespace grouped;

namespace {

template <int M, int N> using Skinny = gemm::Tile<M, N, 64, 4, 1, 3>;

// What comes in as rows: [rows or tokens, stride], k columns of it from `first` on.
struct Wide {
    global<const bf16> values;
    int stride, first, columns, gather;
};

struct Into {
    global<bf16> out, weighted;
    global<const float> weights;
    int width, first, rank;
    float scale;
};

// out[row] = scale * sum_k drop(wide[row, k]) matrix[k, j], and the same times the row's weight. ALONG: the matrix of an expert
// is [rank, k], one of `expert_width` ranks that begins at `first`; else [k, rank].
template <int M, int N, bool DROPPED, bool ALONG>
DEVICE void to_low(const Wide& wide, global<const bf16> matrix, int expert_width, const Into& into, const Dropout& dropout,
                   const Schedule& schedule) {
    using T = Skinny<M, N>;
    DYNAMIC_SHARED(bf16, stages);
    each_tile<T::M>(schedule, into.rank, N, [&](const Work& work) {
        Tokens source{schedule.slots, schedule.per_token, work.first, work.rows};
        if (!wide.gather) source.slots = global<const uint32_t>{};
        gemm::AlongK<T, T::M, Tokens> rows(wide.values + wide.first, wide.stride, wide.columns, source, 0);
        typename T::Sums sum;
        gemm::clear<T>(sum);
        int tiles = (wide.columns + T::K - 1) / T::K;
        auto multiply_by = [&](auto& b) {
            if constexpr (DROPPED) {
                DroppedRows<decltype(rows)> a(rows, dropout, schedule.slots, work.first, work.rows, wide.columns);
                gemm::product<T>(sum, a, b, 0, tiles, stages);
            } else {
                gemm::product<T>(sum, rows, b, 0, tiles, stages);
            }
        };
        if constexpr (ALONG) {
            int64_t first = int64_t(work.expert) * expert_width + into.first + work.column;
            Narrow<T, N> b{matrix + first * wide.columns, wide.columns, wide.columns, into.rank - work.column};
            multiply_by(b);
        } else {
            Across<T, N> b{matrix + int64_t(work.expert) * wide.columns * into.rank, wide.columns, into.rank, work.column};
            multiply_by(b);
        }
        gemm::each_pair<T>(sum, [&](int row, int column, float x, float y) {
            int j = work.column + column;
            if (row >= work.rows || j >= into.rank) return;
            x *= into.scale;
            y *= into.scale;
            int64_t at = int64_t(work.first + row);
            store(into.out + at * into.width + into.first + j, pack(x, y));
            if (into.weighted) {
                float weight = into.weights[schedule.slots[at]];
                store(into.weighted + at * into.width + into.first + j, pack(weight * x, weight * y));
            }
        });
    });
}

// Where the matrices of experts are in the flat parameter; B follows A.
struct Places {
    global<const uint32_t> first, rank;
    global<const float> scale;
    int inputs, outputs;
};

// dB[c, r] += scale_e * sum_rows wide[row, c] low[row, r], or (IS_A) dA[r, c] += scale * sum_rows drop(wide[row, c]) low[row, r].
template <int N, bool DROPPED, bool IS_A>
DEVICE void to_gradient(const Wide& wide, global<const bf16> low, int low_width, int low_first, const Places& places, float scale,
                        const Dropout& dropout, global<const uint32_t> slots, global<const uint32_t> offsets, int per_token,
                        global<float> gradient) {
    using T = Skinny<128, N>;
    DYNAMIC_SHARED(bf16, stages);
    int expert = int(blockIdx.z), first_column = int(blockIdx.x) * T::M, first_rank = int(blockIdx.y) * N;
    int first = int(offsets[expert]), count = int(offsets[expert + 1]) - first, rank = int(places.rank[expert]);
    if (count == 0 || first_rank >= rank) return;
    Tokens source{slots, per_token, first, count};
    if (!wide.gather) source.slots = global<const uint32_t>{};
    gemm::AcrossK<T, T::M, Tokens> columns(wide.values + wide.first, wide.stride, wide.columns, source, first_column);
    int tiles = (count + T::K - 1) / T::K;
    typename T::Sums sum;
    gemm::clear<T>(sum);
    gemm::AcrossK<T, N, Sorted> b(low + low_first, low_width, (rank + CHUNK - 1) / CHUNK * CHUNK, Sorted{first, count}, first_rank);
    if constexpr (DROPPED) {
        DroppedAcross<decltype(columns)> a(columns, dropout, slots, first, count, first_column, wide.columns);
        gemm::product<T>(sum, a, b, 0, tiles, stages);
    } else {
        gemm::product<T>(sum, columns, b, 0, tiles, stages);
    }
    float factor = IS_A ? scale : places.scale[expert];
    global<float> into = gradient + int(places.first[expert]) + (IS_A ? 0 : rank * places.inputs);
    gemm::each_pair<T>(sum, [&](int row, int column, float x, float y) {
        int c = first_column + row, r = first_rank + column;
        if (c >= wide.columns || r >= rank) return;
        if constexpr (IS_A) {
            into[int64_t(r) * wide.columns + c] += factor * x;
            if (r + 1 < rank) into[int64_t(r + 1) * wide.columns + c] += factor * y;
        } else {
            into[int64_t(c) * rank + r] += factor * x;
            if (r + 1 < rank) into[int64_t(c) * rank + r + 1] += factor * y;
        }
    });
}

}  // namespace

#define TO_LOW(name, m, n, dropped, along)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                                      \
        name(global<const bf16> wide, int stride, int first, int columns, int gather, global<const bf16> matrix,              \
             int expert_width, global<bf16> out, global<bf16> weighted, global<const float> weights, int low_width,           \
             int low_first, int rank, float scale, uint32_t threshold, uint64_t key, global<const uint32_t> slots,            \
             global<const uint32_t> offsets, global<const uint32_t> tiles, global<const uint32_t> tile_offsets, int experts,  \
             int per_token) {                                                                                                 \
        to_low<m, n, dropped, along>(Wide{wide, stride, first, columns, gather}, matrix, expert_width,                        \
                                  Into{out, weighted, weights, low_width, low_first, rank, scale}, Dropout{threshold, key},   \
                                  Schedule{slots, offsets, tiles, tile_offsets, 0, experts, per_token});                      \
    }
TO_LOW(moe_low_16, 128, 16, false, true)
KERNEL(moe_low_16)
TO_LOW(moe_low_64, 128, 64, false, true)
KERNEL(moe_low_64)
TO_LOW(moe_low_small_16, 64, 16, false, true)
KERNEL(moe_low_small_16)
TO_LOW(moe_low_small_64, 64, 64, false, true)
KERNEL(moe_low_small_64)
TO_LOW(moe_low_dropped_16, 128, 16, true, true)
KERNEL(moe_low_dropped_16)
TO_LOW(moe_low_dropped_64, 128, 64, true, true)
KERNEL(moe_low_dropped_64)
TO_LOW(moe_low_dropped_small_16, 64, 16, true, true)
KERNEL(moe_low_dropped_small_16)
TO_LOW(moe_low_dropped_small_64, 64, 64, true, true)
KERNEL(moe_low_dropped_small_64)
TO_LOW(moe_low_gradient_16, 128, 16, false, false)
KERNEL(moe_low_gradient_16)
TO_LOW(moe_low_gradient_64, 128, 64, false, false)
KERNEL(moe_low_gradient_64)
TO_LOW(moe_low_gradient_small_16, 64, 16, false, false)
KERNEL(moe_low_gradient_small_16)
TO_LOW(moe_low_gradient_small_64, 64, 64, false, false)
KERNEL(moe_low_gradient_small_64)

#define TO_GRADIENT(name, n, dropped, is_a)                                                                                   \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                                      \
        name(global<const bf16> wide, int stride, int first, int columns, int gather, global<const bf16> low, int low_width,  \
             int low_first, global<const uint32_t> places, global<const uint32_t> ranks, global<const float> scales,          \
             int inputs, int outputs, float scale, uint32_t threshold, uint64_t key, global<const uint32_t> slots,            \
             global<const uint32_t> offsets, int per_token, global<float> gradient) {                                         \
        to_gradient<n, dropped, is_a>(Wide{wide, stride, first, columns, gather}, low, low_width, low_first,                  \
                                      Places{places, ranks, scales, inputs, outputs}, scale, Dropout{threshold, key}, slots,  \
                                      offsets, per_token, gradient);                                                          \
    }
TO_GRADIENT(moe_gradient_a_16, 16, false, true)
KERNEL(moe_gradient_a_16)
TO_GRADIENT(moe_gradient_a_64, 64, false, true)
KERNEL(moe_gradient_a_64)
TO_GRADIENT(moe_gradient_a_dropped_16, 16, true, true)
KERNEL(moe_gradient_a_dropped_16)
TO_GRADIENT(moe_gradient_a_dropped_64, 64, true, true)
KERNEL(moe_gradient_a_dropped_64)
TO_GRADIENT(moe_gradient_b_16, 16, false, false)
KERNEL(moe_gradient_b_16)
TO_GRADIENT(moe_gradient_b_64, 64, false, false)
KERNEL(moe_gradient_b_64)

// The copies that products read: A [experts, a_width, inputs], of which these are `padded` ranks from a_first on, and scale * B
// [experts, outputs, padded]; zeros behind an expert's own rank.
extern "C" __global__ void __launch_bounds__(256)
    moe_lora_copy(global<const float> flat, global<const uint32_t> places, global<const uint32_t> ranks,
                  global<const float> scales, int inputs, int outputs, int padded, int a_width, int a_first, global<bf16> a,
                  global<bf16> b) {
    int expert = int(blockIdx.y), rank = int(ranks[expert]);
    global<const float> own = flat + int(places[expert]);
    float scale = scales[expert];
    global<bf16> own_a = a + (int64_t(expert) * a_width + a_first) * inputs;
    global<bf16> own_b = b + int64_t(expert) * outputs * padded;
    int of_a = padded * inputs / 2, all = of_a + outputs * padded / 2;
    for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < all; i += int(gridDim.x * blockDim.x)) {
        bool is_a = i < of_a;
        int at = 2 * (is_a ? i : i - of_a), length = is_a ? inputs : padded;
        int row = at / length, column = at % length;
        float pair[2];
#pragma unroll
        for (int v = 0; v < 2; v++) {
            int r = is_a ? row : column + v;
            int64_t from = is_a ? int64_t(row) * inputs + column + v : int64_t(rank) * inputs + int64_t(row) * rank + column + v;
            pair[v] = r < rank ? (is_a ? 1.0f : scale) * own[from] : 0.0f;
        }
        store((is_a ? own_a : own_b) + at, pack(pair[0], pair[1]));
    }
}
KERNEL(moe_lora_copy)
