// The products of routed experts whose weights are bf16 (decoded into a workspace, or stored so), and the sums of tokens.
//
// Each of the four products is a grouped product with tiles of 128 rows by 128 columns, two blocks of 4 warps a
// multiprocessor (gemm.h says why); rows are gathered where they are loaded, and the low-rank update is one or two more steps
// of k. What is left to memory: activations once in and once out, weights once for each tile of 128 rows, mostly out of L2.
#include "grouped.h"

using namespace grouped;

namespace {

using T = gemm::Tile<128, 128, 32, 2, 2, 4>;
using Sums = T::Sums;

DEVICE int tiles_of(int k) { return (k + T::K - 1) / T::K; }

}  // namespace

// gate_up[row] = x[token] [gate ; up]^T + the updates, hidden[row] = silu(gate) * up. `weights` begins with expert
// `first_weights`.
extern "C" __global__ void __launch_bounds__(128)
    moe_gate_up(global<const bf16> x, global<const bf16> weights, int first_weights, global<const bf16> low_rank,
                global<const bf16> gate_b, global<const bf16> up_b, int gate_rank, int up_rank, global<const uint32_t> slots,
                global<const uint32_t> offsets, global<const uint32_t> tiles, global<const uint32_t> tile_offsets,
                int first_expert, int last_expert, int per_token, int hidden, int width, global<bf16> gate_up,
                global<bf16> inner) {
    DYNAMIC_SHARED(bf16, stages);
    Schedule schedule{slots, offsets, tiles, tile_offsets, first_expert, last_expert, per_token};
    each_tile(schedule, width, T::N / 2, [&](const Work& work) {
        Tokens tokens{slots, per_token, work.first, work.rows};
        gemm::AlongK<T, T::M, Tokens> x_rows(x, hidden, hidden, tokens, 0);
        int64_t of_expert = int64_t(work.expert - first_weights) * 2 * width * hidden;
        gemm::AlongK<T, T::N, GateUp> w(weights + of_expert, hidden, hidden, GateUp{work.column, width}, 0);
        int rank = gate_rank + up_rank, main = tiles_of(hidden);
        Narrow<T, T::M> low_rows{low_rank + int64_t(work.first) * rank, rank, rank, work.rows};
        GateUpUpdate<T, T::N> update{gate_b + int64_t(work.expert) * width * gate_rank, up_b + int64_t(work.expert) * width * up_rank,
                                     gate_rank, up_rank, work.column, width};
        gemm::Joined<decltype(x_rows), decltype(low_rows)> a{x_rows, main, low_rows};
        gemm::Joined<decltype(w), decltype(update)> b{w, main, update};
        Sums sum;
        gemm::clear<T>(sum);
        gemm::product<T>(sum, a, b, 0, main + tiles_of(rank), stages);
        const gemm::Part<T> part;
        int lane = int(threadIdx.x) % 32;
#pragma unroll
        for (int i = 0; i < T::ROWS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = part.first_row + 16 * i + 8 * half + lane / 4;
#pragma unroll
                for (int j = 0; j < T::COLUMNS; j += 2) {
                    int column = work.column + part.first_column / 2 + 4 * j + lane % 4 * 2;
                    if (row >= work.rows || column >= width) continue;
                    uint32_t gate = pack(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
                    uint32_t up = pack(sum[i][j + 1][2 * half], sum[i][j + 1][2 * half + 1]);
                    int64_t at = int64_t(work.first + row);
                    if (gate_up) {
                        store(gate_up + at * 2 * width + column, gate);
                        store(gate_up + at * 2 * width + width + column, up);
                    }
                    float first = low(gate) * sigmoid(low(gate)) * low(up);
                    float second = high(gate) * sigmoid(high(gate)) * high(up);
                    store(inner + at * width + column, pack(first, second));
                }
            }
        }
    });
}
KERNEL(moe_gate_up)

// y[row] = hidden[row] down^T + the update, without the routing weight.
extern "C" __global__ void __launch_bounds__(128)
    moe_down(global<const bf16> inner, global<const bf16> weights, int first_weights, global<const bf16> low_rank,
             global<const bf16> down_b, int rank, global<const uint32_t> slots, global<const uint32_t> offsets,
             global<const uint32_t> tiles, global<const uint32_t> tile_offsets, int first_expert, int last_expert, int per_token,
             int hidden, int width, global<bf16> y) {
    DYNAMIC_SHARED(bf16, stages);
    Schedule schedule{slots, offsets, tiles, tile_offsets, first_expert, last_expert, per_token};
    each_tile(schedule, hidden, T::N, [&](const Work& work) {
        gemm::AlongK<T, T::M, Sorted> rows(inner, width, width, Sorted{work.first, work.rows}, 0);
        gemm::AlongK<T, T::N> w(weights + int64_t(work.expert - first_weights) * hidden * width, width, width,
                                gemm::EveryRow{hidden}, work.column);
        int main = tiles_of(width);
        Narrow<T, T::M> low_rows{low_rank + int64_t(work.first) * rank, rank, rank, work.rows};
        Narrow<T, T::N> update{down_b + (int64_t(work.expert) * hidden + work.column) * rank, rank, rank, hidden - work.column};
        gemm::Joined<decltype(rows), decltype(low_rows)> a{rows, main, low_rows};
        gemm::Joined<decltype(w), decltype(update)> b{w, main, update};
        Sums sum;
        gemm::clear<T>(sum);
        gemm::product<T>(sum, a, b, 0, main + tiles_of(rank), stages);
        gemm::each_pair<T>(sum, [&](int row, int column, float first, float second) {
            if (row >= work.rows || work.column + column >= hidden) return;
            store(y + int64_t(work.first + row) * hidden + work.column + column, pack(first, second));
        });
    });
}
KERNEL(moe_down)

// The gradient of hidden, of gate and up, and shares of the routing weights' gradients:
//   g = d_out[token] down + drop(d_low A);  d_weight = g . hidden;  d_gate, d_up = through the activation of weight * g
// `shares` has one value for each 64 columns of a row.
extern "C" __global__ void __launch_bounds__(128)
    moe_down_backward(global<const bf16> d_out, global<const bf16> weights, int first_weights, global<const bf16> d_low,
                      global<const bf16> down_a, int rank, uint32_t threshold, uint64_t key, float scale,
                      global<const bf16> gate_up, global<const float> routing_weights, global<const uint32_t> slots,
                      global<const uint32_t> offsets, global<const uint32_t> tiles, global<const uint32_t> tile_offsets,
                      int first_expert, int last_expert, int per_token, int hidden, int width, global<bf16> d_gate_up,
                      global<float> shares) {
    DYNAMIC_SHARED(bf16, stages);
    Schedule schedule{slots, offsets, tiles, tile_offsets, first_expert, last_expert, per_token};
    int pieces = (width + T::WARP_N - 1) / T::WARP_N;
    each_tile(schedule, width, T::N, [&](const Work& work) {
        int before = tiles_of(rank);
        Narrow<T, T::M> low_rows{d_low + int64_t(work.first) * rank, rank, rank, work.rows};
        Across<T, T::N> update{down_a + int64_t(work.expert) * rank * width, rank, width, work.column};
        gemm::AlongK<T, T::M, Tokens> rows(d_out, hidden, hidden, Tokens{slots, per_token, work.first, work.rows}, 0);
        gemm::AcrossK<T, T::N> w(weights + int64_t(work.expert - first_weights) * hidden * width, width, width,
                                 gemm::EveryRow{hidden}, work.column);
        gemm::Joined<decltype(low_rows), decltype(rows)> a{low_rows, before, rows};
        gemm::Joined<decltype(update), decltype(w)> b{update, before, w};
        Sums sum;
        gemm::clear<T>(sum);
        product<T>(sum, a, b, before, before + tiles_of(hidden), Dropout{threshold, key}, scale, slots, work, width, stages);
        const gemm::Part<T> part;
        int lane = int(threadIdx.x) % 32;
#pragma unroll
        for (int i = 0; i < T::ROWS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = part.first_row + 16 * i + 8 * half + lane / 4;
                bool has = row < work.rows;
                int64_t at = int64_t(work.first + (has ? row : 0));
                float weight = routing_weights[slots[at]];
                float dot = 0;
#pragma unroll
                for (int j = 0; j < T::COLUMNS; j++) {
                    int column = work.column + part.first_column + 8 * j + lane % 4 * 2;
                    if (!has || column >= width) continue;
                    uint32_t gate = load<uint32_t>(gate_up + at * 2 * width + column);
                    uint32_t up = load<uint32_t>(gate_up + at * 2 * width + width + column);
                    float d_gate[2], d_up[2];
#pragma unroll
                    for (int v = 0; v < 2; v++) {
                        float g = v ? high(gate) : low(gate), u = v ? high(up) : low(up);
                        float s = sigmoid(g), gradient = sum[i][j][2 * half + v];
                        dot += gradient * g * s * u;
                        d_gate[v] = weight * gradient * u * s * (1.0f + g * (1.0f - s));
                        d_up[v] = weight * gradient * g * s;
                    }
                    store(d_gate_up + at * 2 * width + column, pack(d_gate[0], d_gate[1]));
                    store(d_gate_up + at * 2 * width + width + column, pack(d_up[0], d_up[1]));
                }
                dot += shuffle_xor(dot, 1);
                dot += shuffle_xor(dot, 2);
                int piece = (work.column + part.first_column) / T::WARP_N;
                if (has && lane % 4 == 0 && piece < pieces) shares[at * pieces + piece] = dot;
            }
        }
    });
}
KERNEL(moe_down_backward)

// d_rows[row] = d_gate_up[row] [gate ; up] + drop(d_low A), or added to what is there. `main` is 0 where only the update is
// wanted. Of the low-rank rows of both projections, `low_width` wide, `rank` are taken, beginning with `low_first`.
extern "C" __global__ void __launch_bounds__(128)
    moe_gate_up_backward(global<const bf16> d_gate_up, global<const bf16> weights, int first_weights, int main,
                         global<const bf16> d_low, global<const bf16> low_a, int low_width, int low_first, int rank,
                         uint32_t threshold, uint64_t key, float scale, int accumulate, global<const uint32_t> slots, global<const uint32_t> offsets,
                         global<const uint32_t> tiles, global<const uint32_t> tile_offsets, int first_expert, int last_expert,
                         int per_token, int hidden, int width, global<bf16> d_rows) {
    DYNAMIC_SHARED(bf16, stages);
    Schedule schedule{slots, offsets, tiles, tile_offsets, first_expert, last_expert, per_token};
    each_tile(schedule, hidden, T::N, [&](const Work& work) {
        int before = tiles_of(rank);
        Narrow<T, T::M> low_rows{d_low + int64_t(work.first) * low_width + low_first, low_width, rank, work.rows};
        Across<T, T::N> update{low_a + (int64_t(work.expert) * low_width + low_first) * hidden, rank, hidden, work.column};
        gemm::AlongK<T, T::M, Sorted> rows(d_gate_up, 2 * width, 2 * width, Sorted{work.first, work.rows}, 0);
        gemm::AcrossK<T, T::N> w(weights + int64_t(work.expert - first_weights) * 2 * width * hidden, hidden, hidden,
                                 gemm::EveryRow{2 * width}, work.column);
        gemm::Joined<decltype(low_rows), decltype(rows)> a{low_rows, before, rows};
        gemm::Joined<decltype(update), decltype(w)> b{update, before, w};
        Sums sum;
        gemm::clear<T>(sum);
        product<T>(sum, a, b, before, before + (main ? tiles_of(2 * width) : 0), Dropout{threshold, key}, scale, slots, work, hidden, stages);
        gemm::each_pair<T>(sum, [&](int row, int column, float first, float second) {
            if (row >= work.rows || work.column + column >= hidden) return;
            global<bf16> at = d_rows + int64_t(work.first + row) * hidden + work.column + column;
            if (accumulate) {
                uint32_t old = load<uint32_t>(at);
                first += low(old);
                second += high(old);
            }
            store(at, pack(first, second));
        });
    });
}
KERNEL(moe_gate_up_backward)

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
