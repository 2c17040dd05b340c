// The four products of routed experts, whatever their weights are stored as.
//
// Each is a grouped product: rows are gathered where they are loaded, the low-rank update is one or two more steps of k, and
// what follows (activation, its reverse, the routing weights' gradients) happens to the sums in registers. What is left to
// memory: activations once in and once out, weights once for each tile of rows, mostly out of L2.
//
// `Weights` has the operands of an expert: gate_up (both, interleaved as GateUp says) and down along k, and both across k.
#pragma once

#include "grouped.h"

namespace experts {

using namespace grouped;

struct Sizes {
    int hidden, width;
};

// A and B of an update; both ranks of gate and up.
struct Update {
    global<const bf16> low, gate_b, up_b;
    int gate_rank, up_rank;
};

template <class T> DEVICE int tiles_of(int k) { return (k + T::K - 1) / T::K; }

// gate_up[row] = x[token] [gate ; up]^T + the updates, inner[row] = silu(gate) * up.
template <class T, class Weights>
DEVICE void gate_up(global<const bf16> x, const Weights& weights, const Update& own, const Schedule& schedule, const Sizes& sizes,
                    global<bf16> out, global<bf16> inner) {
    ALIGNED_SHARED(bf16, stages);
    int hidden = sizes.hidden, width = sizes.width;
    each_tile<T::M>(schedule, width, T::N / 2, [&](const Work& work) {
        gemm::AlongK<T, T::M, Tokens> rows(x, hidden, hidden, Tokens{schedule.slots, schedule.per_token, work.first, work.rows}, 0);
        auto w = weights.template gate_up<T>(work, hidden, width);
        int rank = own.gate_rank + own.up_rank, main = tiles_of<T>(hidden);
        Narrow<T, T::M> low_rows{own.low + int64_t(work.first) * rank, rank, rank, work.rows};
        GateUpUpdate<T, T::N> update{own.gate_b + int64_t(work.expert) * width * own.gate_rank,
                                     own.up_b + int64_t(work.expert) * width * own.up_rank, own.gate_rank, own.up_rank, work.column, width};
        gemm::Joined<decltype(rows), decltype(low_rows)> a{rows, main, low_rows};
        gemm::Joined<decltype(w), decltype(update)> b{w, main, update};
        typename T::Sums sum;
        gemm::clear<T>(sum);
        T::product(sum, a, b, 0, main + tiles_of<T>(rank), stages, work.rows);
        const gemm::Part<T> part;
        int lane = int(threadIdx.x) % 32;
#pragma unroll
        for (int i = 0; i < T::ROWS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = part.first_row + T::BETWEEN * i + 8 * half + lane / 4;
#pragma unroll
                for (int j = 0; j < T::COLUMNS; j += 2) {
                    int column = work.column + part.first_column / 2 + 4 * j + lane % 4 * 2;
                    if (row >= work.rows || column >= width) continue;
                    uint32_t gate = pack(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
                    uint32_t up = pack(sum[i][j + 1][2 * half], sum[i][j + 1][2 * half + 1]);
                    int64_t at = int64_t(work.first + row);
                    store(out + at * 2 * width + column, gate);
                    store(out + at * 2 * width + width + column, up);
                    float first = low(gate) * sigmoid(low(gate)) * low(up);
                    float second = high(gate) * sigmoid(high(gate)) * high(up);
                    store(inner + at * width + column, pack(first, second));
                }
            }
        }
    });
}

// y[row] = inner[row] down^T + the update, without the routing weight.
template <class T, class Weights>
DEVICE void down(global<const bf16> inner, const Weights& weights, global<const bf16> low_rank, global<const bf16> down_b, int rank,
                 const Schedule& schedule, const Sizes& sizes, global<bf16> y) {
    ALIGNED_SHARED(bf16, stages);
    int hidden = sizes.hidden, width = sizes.width;
    each_tile<T::M>(schedule, hidden, T::N, [&](const Work& work) {
        gemm::AlongK<T, T::M, Sorted> rows(inner, width, width, Sorted{work.first, work.rows}, 0);
        auto w = weights.template down<T>(work, hidden, width);
        int main = tiles_of<T>(width);
        Narrow<T, T::M> low_rows{low_rank + int64_t(work.first) * rank, rank, rank, work.rows};
        Narrow<T, T::N> update{down_b + (int64_t(work.expert) * hidden + work.column) * rank, rank, rank, hidden - work.column};
        gemm::Joined<decltype(rows), decltype(low_rows)> a{rows, main, low_rows};
        gemm::Joined<decltype(w), decltype(update)> b{w, main, update};
        typename T::Sums sum;
        gemm::clear<T>(sum);
        T::product(sum, a, b, 0, main + tiles_of<T>(rank), stages, work.rows);
        gemm::each_pair<T>(sum, [&](int row, int column, float first, float second) {
            if (row >= work.rows || work.column + column >= hidden) return;
            store(y + int64_t(work.first + row) * hidden + work.column + column, pack(first, second));
        });
    });
}

// What the reverse of an update takes.
struct Reverse {
    global<const bf16> d_low, a;
    // Of rows of low rank `width` wide, `rank` are taken, beginning with `first`.
    int width, first, rank;
    Dropout dropout;
    float scale;
};

// The gradient of inner, of gate and up, and shares of the routing weights' gradients:
//   g = d_out[token] down + drop(d_low A);  d_weight = g . inner;  d_gate, d_up = through the activation of weight * g
// `shares` has one value for each SHARE columns of a row.
constexpr int SHARE = 64;
template <class T, bool DROPS, class Weights>
DEVICE void down_backward(global<const bf16> d_out, const Weights& weights, const Reverse& own, global<const bf16> gate_up,
                          global<const float> routing_weights, const Schedule& schedule, const Sizes& sizes, global<bf16> d_gate_up,
                          global<float> shares) {
    ALIGNED_SHARED(bf16, stages);
    int hidden = sizes.hidden, width = sizes.width, pieces = (width + SHARE - 1) / SHARE;
    static_assert(T::WARP_N % SHARE == 0, "a warp has whole shares");
    each_tile<T::M>(schedule, width, T::N, [&](const Work& work) {
        int before = tiles_of<T>(own.rank);
        Narrow<T, T::M> low_rows{own.d_low + int64_t(work.first) * own.width + own.first, own.width, own.rank, work.rows};
        Across<T, T::N> update{own.a + (int64_t(work.expert) * own.width + own.first) * width, own.rank, width, work.column};
        gemm::AlongK<T, T::M, Tokens> rows(d_out, hidden, hidden, Tokens{schedule.slots, schedule.per_token, work.first, work.rows}, 0);
        auto w = weights.template down_across<T>(work, hidden, width);
        gemm::Joined<decltype(low_rows), decltype(rows)> a{low_rows, before, rows};
        gemm::Joined<decltype(update), decltype(w)> b{update, before, w};
        typename T::Sums sum;
        gemm::clear<T>(sum);
        product<DROPS, T>(sum, a, b, before, before + tiles_of<T>(hidden), own.dropout, own.scale, schedule.slots, work, width, stages);
        const gemm::Part<T> part;
        int lane = int(threadIdx.x) % 32;
#pragma unroll
        for (int i = 0; i < T::ROWS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = part.first_row + T::BETWEEN * i + 8 * half + lane / 4;
                bool has = row < work.rows;
                int64_t at = int64_t(work.first + (has ? row : 0));
                float weight = routing_weights[schedule.slots[at]];
#pragma unroll
                for (int share = 0; share < T::WARP_N / SHARE; share++) {
                    float dot = 0;
#pragma unroll
                    for (int own = 0; own < SHARE / 8; own++) {
                        int j = share * (SHARE / 8) + own, column = work.column + part.first_column + 8 * j + lane % 4 * 2;
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
                    int piece = (work.column + part.first_column) / SHARE + share;
                    if (has && lane % 4 == 0 && piece < pieces) shares[at * pieces + piece] = dot;
                }
            }
        }
    });
}

// d_rows[row] = d_gate_up[row] [gate ; up] + drop(d_low A), or added to what is there; only the update where not `main`.
template <class T, bool DROPS, class Weights>
DEVICE void gate_up_backward(global<const bf16> d_gate_up, const Weights& weights, int main, const Reverse& own, int accumulate,
                             const Schedule& schedule, const Sizes& sizes, global<bf16> d_rows) {
    ALIGNED_SHARED(bf16, stages);
    int hidden = sizes.hidden, width = sizes.width;
    each_tile<T::M>(schedule, hidden, T::N, [&](const Work& work) {
        int before = tiles_of<T>(own.rank);
        Narrow<T, T::M> low_rows{own.d_low + int64_t(work.first) * own.width + own.first, own.width, own.rank, work.rows};
        Across<T, T::N> update{own.a + (int64_t(work.expert) * own.width + own.first) * hidden, own.rank, hidden, work.column};
        gemm::AlongK<T, T::M, Sorted> rows(d_gate_up, 2 * width, 2 * width, Sorted{work.first, work.rows}, 0);
        auto w = weights.template gate_up_across<T>(work, hidden, width);
        gemm::Joined<decltype(low_rows), decltype(rows)> a{low_rows, before, rows};
        gemm::Joined<decltype(update), decltype(w)> b{update, before, w};
        typename T::Sums sum;
        gemm::clear<T>(sum);
        int tiles = before + (main ? tiles_of<T>(2 * width) : 0);
        product<DROPS, T>(sum, a, b, before, tiles, own.dropout, own.scale, schedule.slots, work, hidden, stages);
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

// Weights in bf16, beginning with expert `first`.
struct InBf16 {
    global<const bf16> values;
    int first;

    DEVICE InBf16(global<const bf16> values, int first, global<const uint8_t>, global<const float>, global<const uint8_t>,
                 global<const float>, global<const float>, global<const float>)
        : values(values), first(first) {}

    DEVICE global<const bf16> of(const Work& work, int count) const {
        return values + int64_t(work.expert - first) * count;
    }

    template <class T> DEVICE auto gate_up(const Work& work, int hidden, int width) const {
        return gemm::AlongK<T, T::N, GateUp>(of(work, 2 * width * hidden), hidden, hidden,
                                                      GateUp{work.column, width}, 0);
    }
    template <class T> DEVICE auto down(const Work& work, int hidden, int width) const {
        return gemm::AlongK<T, T::N>(of(work, hidden * width), width, width, gemm::EveryRow{hidden}, work.column);
    }
    template <class T> DEVICE auto down_across(const Work& work, int hidden, int width) const {
        return gemm::AcrossK<T, T::N>(of(work, hidden * width), width, width, gemm::EveryRow{hidden}, work.column);
    }
    template <class T> DEVICE auto gate_up_across(const Work& work, int hidden, int width) const {
        return gemm::AcrossK<T, T::N>(of(work, 2 * width * hidden), hidden, hidden, gemm::EveryRow{2 * width}, work.column);
    }
};

}  // namespace experts

// The kernels over some experts. All take weights in either form, of which Made uses its own; so the host has one way to launch
// them.
#define EXPERTS_WEIGHTS                                                                                                       \
    global<const bf16> plain, int first_plain, global<const uint8_t> packed, global<const float> absmax,                      \
        global<const uint8_t> codes, global<const float> nested, global<const float> nested_offsets, global<const float> map
#define EXPERTS_SCHEDULE                                                                                                      \
    global<const uint32_t> slots, global<const uint32_t> offsets, global<const uint32_t> tiles,                               \
        global<const uint32_t> tile_offsets, int first_expert, int last_expert, int per_token, int hidden, int width
#define EXPERTS_MAKE(Made) Made(plain, first_plain, packed, absmax, codes, nested, nested_offsets, map)
#define EXPERTS_MADE                                                                                                          \
    experts::Schedule { slots, offsets, tiles, tile_offsets, first_expert, last_expert, per_token }

#define EXPERTS_GATE_UP(name, T, Made)                                                                                        \
    extern "C" __global__ void __launch_bounds__(T::THREADS, T::BLOCKS)                                                      \
        name(global<const bf16> x, EXPERTS_WEIGHTS, global<const bf16> low_rank, global<const bf16> gate_b,                   \
             global<const bf16> up_b, int gate_rank, int up_rank, EXPERTS_SCHEDULE, global<bf16> gate_up,                     \
             global<bf16> inner) {                                                                                            \
        experts::gate_up<T>(x, EXPERTS_MAKE(Made), experts::Update{low_rank, gate_b, up_b, gate_rank, up_rank}, EXPERTS_MADE, \
                            experts::Sizes{hidden, width}, gate_up, inner);                                                   \
    }
#define EXPERTS_DOWN(name, T, Made)                                                                                           \
    extern "C" __global__ void __launch_bounds__(T::THREADS, T::BLOCKS)                                                      \
        name(global<const bf16> inner, EXPERTS_WEIGHTS, global<const bf16> low_rank, global<const bf16> down_b,               \
             int rank, EXPERTS_SCHEDULE, global<bf16> y) {                                                                    \
        experts::down<T>(inner, EXPERTS_MAKE(Made), low_rank, down_b, rank, EXPERTS_MADE, experts::Sizes{hidden, width}, y);  \
    }
#define EXPERTS_DOWN_BACKWARD(name, T, Made, drops)                                                                           \
    extern "C" __global__ void __launch_bounds__(T::THREADS, T::BLOCKS)                                                      \
        name(global<const bf16> d_out, EXPERTS_WEIGHTS, global<const bf16> d_low, global<const bf16> low_a,                   \
             int low_width, int low_first, int rank, uint32_t threshold, uint64_t key, float scale, EXPERTS_SCHEDULE,         \
             global<const bf16> gate_up, global<const float> routing_weights, global<bf16> d_gate_up, global<float> shares) { \
        experts::Reverse own{d_low, low_a, low_width, low_first, rank, Dropout{threshold, key}, scale};                       \
        experts::down_backward<T, drops>(d_out, EXPERTS_MAKE(Made), own, gate_up, routing_weights, EXPERTS_MADE,              \
                                  experts::Sizes{hidden, width}, d_gate_up, shares);                                          \
    }
#define EXPERTS_GATE_UP_BACKWARD(name, T, Made, drops)                                                                        \
    extern "C" __global__ void __launch_bounds__(T::THREADS, T::BLOCKS)                                                      \
        name(global<const bf16> d_gate_up, EXPERTS_WEIGHTS, global<const bf16> d_low, global<const bf16> low_a,               \
             int low_width, int low_first, int rank, uint32_t threshold, uint64_t key, float scale, EXPERTS_SCHEDULE,         \
             int main, int accumulate, global<bf16> d_rows) {                                                                 \
        experts::Reverse own{d_low, low_a, low_width, low_first, rank, Dropout{threshold, key}, scale};                       \
        experts::gate_up_backward<T, drops>(d_gate_up, EXPERTS_MAKE(Made), main, own, accumulate, EXPERTS_MADE,               \
                                     experts::Sizes{hidden, width}, d_rows);                                                  \
    }
