// What a block of delta_gradients has in its memory, and the products by which a warp adds up the gradients of queries and keys
// and those of the squares between them (the formulas stand in delta_gradients.cu).
#pragma once

#include "delta_tiles.h"

namespace delta {

constexpr int THREADS = 256;
// Columns of the values at a time.
constexpr int DEPTH = 32;

template <int DK> struct Stage {
    shared<bf16> state, dstate, outputs, values, written;
    shared<float> factors;
    static constexpr int SIZE = 2 * DEPTH * DK + 3 * CHUNK * DEPTH;

    DEVICE Stage(shared<bf16> at, shared<float> factors) : factors(factors) {
        state = at;
        dstate = state + DEPTH * DK;
        outputs = dstate + DEPTH * DK;
        values = outputs + CHUNK * DEPTH;
        written = values + CHUNK * DEPTH;
    }
};

// A block's own memory: raw rows, two stages, a square that also holds sums while it is none, factors of two heads, lengths.
template <int DK> struct Tiles {
    shared<bf16> q, k, stages, square;
    shared<float> factors, q_inverse, k_inverse, diagonal, totals;

    DEVICE explicit Tiles(shared<bf16> memory) {
        q = memory;
        k = q + CHUNK * DK;
        stages = k + CHUNK * DK;
        square = stages + 2 * Stage<DK>::SIZE;
        factors = as<float>(square + CHUNK * CHUNK);
        q_inverse = factors + 2 * CHUNK * FACTORS;
        k_inverse = q_inverse + CHUNK;
        diagonal = k_inverse + CHUNK;
        totals = diagonal + CHUNK;
    }
    DEVICE Stage<DK> stage(int number, int head) const {
        return Stage<DK>(stages + number % 2 * Stage<DK>::SIZE, factors_of(head));
    }
    DEVICE shared<float> factors_of(int head) const { return factors + head % 2 * (CHUNK * FACTORS); }
    // The square's other use.
    DEVICE shared<float> row_sums() const { return as<float>(square); }
    DEVICE shared<float> column_sums() const { return row_sums() + 4 * CHUNK; }
};

struct Given {
    global<const bf16> qkv, ba, weights, outputs, written, states, dstates;
    global<const float> factors, a_log, dt_bias;
    global<bf16> dqkv, dba;
};

// What is given, and a block's chunk and key head.
struct Problem : Given {
    int64_t first, width;
    uint32_t before, after;
    int rows, key_head, key_heads, per_key, heads, dk, dv;

    DEVICE Problem(const Given& given, global<const uint32_t> chunks, int key_heads, int per_key, int dk, int dv)
        : Given(given), key_heads(key_heads), per_key(per_key), heads(key_heads * per_key), dk(dk), dv(dv) {
        const int chunk = blockIdx.x / key_heads;
        key_head = blockIdx.x % key_heads;
        first = chunks[4 * chunk];
        rows = int(chunks[4 * chunk + 1]);
        before = chunks[4 * chunk + 2];
        after = chunks[4 * chunk + 3];
        width = int64_t(2) * key_heads * dk + int64_t(heads) * dv;
    }
};

// Tile `column` of a head's columns of the values, with the factors where it is the first.
template <int DK> DEVICE void load_stage(const Stage<DK>& stage, const Problem& p, int head, int column) {
    const int thread = threadIdx.x;
    const int64_t state = (int64_t(head) * p.dv + column) * p.dk, of_all = int64_t(p.heads) * p.dv * p.dk;
    if (p.before != NO_STATE) {
        load_tile<DEPTH, DK>(stage.state, p.states + (p.before * of_all + state), p.dk, p.dv - column, p.dk, thread, THREADS);
    }
    if (p.after != NO_STATE) {
        load_tile<DEPTH, DK>(stage.dstate, p.dstates + (p.after * of_all + state), p.dk, p.dv - column, p.dk, thread, THREADS);
    }
    const int64_t stride = int64_t(p.heads) * p.dv, at = p.first * stride + head * p.dv + column;
    load_tile<CHUNK, DEPTH>(stage.outputs, p.outputs + at, stride, p.rows, p.dv - column, thread, THREADS);
    load_tile<CHUNK, DEPTH>(stage.written, p.written + at, stride, p.rows, p.dv - column, thread, THREADS);
    const int64_t value = p.first * p.width + 2 * p.key_heads * p.dk + head * p.dv + column;
    load_tile<CHUNK, DEPTH>(stage.values, p.dqkv + value, p.width, p.rows, p.dv - column, thread, THREADS);
    if (column == 0) load_factors(stage.factors, p.factors, FOR_GRADIENTS, p.first, p.rows, p.heads, head, thread);
}

// A warp's results: rows 32 row.., keys 32 column.. of [64, keys], and tokens 16 column.. of [64, 64].
template <int DK> struct Gradients {
    float q[2][4][4], k[2][4][4], kept[2][4][4];
    float weights[2][2][4], solution[2][2][4];
    // Raw <k, k> in pairs of bf16.
    uint32_t kk[2][2][2];
    // What <., q> + <., k> - <., k> of each row, and its last part of all, were before this head.
    float crossing[4], kept_all;
    float through;
    int row, column;
    bool has_keys;

    DEVICE explicit Gradients(int warp) : kept_all(0), through(0), row(warp / 4 * 32), column(warp % 4), has_keys(warp % 4 * 32 < DK) {
#pragma unroll
        for (int m = 0; m < 2; m++) {
            clear(q[m]);
            clear(k[m]);
            clear(kept[m]);
            clear(weights[m]);
            clear(solution[m]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) crossing[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) kk[i / 4][i / 2 % 2][i % 2] = 0;
    }

    // Whether the tokens of `weights` and `solution` are all after those of its rows.
    DEVICE bool above() const { return 16 * column > row + 31; }

    DEVICE void square(const Tiles<DK>& tiles, const Lane& lane) {
        if (above()) return;
        // Into `solution`, which is empty again after it.
#pragma unroll 2
        for (int step = 0; step < DK; step += 16) {
            uint32_t a[4], b[4];
            right<DK>(b, tiles.k, lane, step, 16 * column);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                left<DK>(a, tiles.k, lane, row + 16 * m, step);
                two_products(solution[m][0], solution[m][1], a, b);
            }
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) kk[m][n][i] = pack(solution[m][n][2 * i], solution[m][n][2 * i + 1]);
            }
            clear(solution[m]);
        }
    }

    // One tile of columns of the values.
    DEVICE void add(const Stage<DK>& stage, const Lane& lane, bool has_state, bool has_dstate) {
#pragma unroll
        for (int step = 0; step < DEPTH; step += 16) {
            add_outputs(stage, lane, step, has_state);
            if (has_keys && has_dstate) add_written(stage, lane, step);
        }
    }

    // <dS, S> of a tile, this thread's part.
    DEVICE void pass(const Stage<DK>& stage) {
        for (int at = threadIdx.x * 8; at < DEPTH * DK; at += THREADS * 8) {
            uint4 x = load<uint4>(stage.state + at), y = load<uint4>(stage.dstate + at);
            const uint32_t of_x[4] = {x.x, x.y, x.z, x.w}, of_y[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++) through += low(of_x[i]) * low(of_y[i]) + high(of_x[i]) * high(of_y[i]);
        }
    }

    // q + A k, k + A^T q, k + (B + B^T) k.
    DEVICE void within(const Tiles<DK>& tiles, const Lane& lane) {
        put_weights(tiles.square, lane);
        sync_block();
        if (has_keys) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const int own = row / 16 + m;
                for (int step = 0; step <= own; step++) {
                    uint32_t a[4];
                    left<CHUNK>(a, tiles.square, lane, 16 * own, 16 * step);
                    multiply_by(q[m], a, tiles.k, lane, 16 * step);
                }
                for (int step = own; step < 4; step++) {
                    uint32_t a[4];
                    left_transposed<CHUNK>(a, tiles.square, lane, 16 * own, 16 * step);
                    multiply_by(k[m], a, tiles.q, lane, 16 * step);
                }
            }
        }
        sync_block();
        put_solution(tiles.square, lane);
        sync_block();
        if (has_keys) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
                for (int step = 0; step < 4; step++) {
                    uint32_t a[4];
                    left<CHUNK>(a, tiles.square, lane, row + 16 * m, 16 * step);
                    multiply_by(k[m], a, tiles.k, lane, 16 * step);
                }
            }
        }
        sync_block();
    }

   private:
    DEVICE void add_outputs(const Stage<DK>& stage, const Lane& lane, int step, bool has_state) {
        uint32_t outputs[2][4], values[2][4], b[4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            left<DEPTH>(outputs[m], stage.outputs, lane, row + 16 * m, step);
            left<DEPTH>(values[m], stage.values, lane, row + 16 * m, step);
        }
        if (!above()) {
            right<DEPTH>(b, stage.written, lane, step, 16 * column);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                two_products(weights[m][0], weights[m][1], outputs[m], b);
                two_products(solution[m][0], solution[m][1], values[m], b);
            }
        }
        if (!has_keys || !has_state) return;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            shared<float> upper = stage.factors + (row + 16 * m + lane.group) * FACTORS, lower = upper + 8 * FACTORS;
            scale(outputs[m], upper[READ], lower[READ]);
            scale(values[m], -upper[RECALL], -lower[RECALL]);
        }
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            right_transposed<DK>(b, stage.state, lane, step, 32 * column + 8 * n);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                two_products(q[m][n], q[m][n + 1], outputs[m], b);
                two_products(k[m][n], k[m][n + 1], values[m], b);
            }
        }
    }

    DEVICE void add_written(const Stage<DK>& stage, const Lane& lane, int step) {
        uint32_t written[2][4], b[4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            left<DEPTH>(written[m], stage.written, lane, row + 16 * m, step);
            shared<float> upper = stage.factors + (row + 16 * m + lane.group) * FACTORS, lower = upper + 8 * FACTORS;
            scale(written[m], upper[KEEP], lower[KEEP]);
        }
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            right_transposed<DK>(b, stage.dstate, lane, step, 32 * column + 8 * n);
#pragma unroll
            for (int m = 0; m < 2; m++) two_products(kept[m][n], kept[m][n + 1], written[m], b);
        }
    }

    // The rows of a left operand.
    static DEVICE void scale(uint32_t (&a)[4], float upper, float lower) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float factor = i % 2 ? lower : upper;
            a[i] = pack(factor * low(a[i]), factor * high(a[i]));
        }
    }

    DEVICE void multiply_by(float (&d)[4][4], const uint32_t (&a)[4], shared<bf16> rows, const Lane& lane, int first) {
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            uint32_t b[4];
            right_transposed<DK>(b, rows, lane, first, 32 * column + 8 * n);
            two_products(d[n], d[n + 1], a, b);
        }
    }

    // Pieces above the diagonal are not read.
    DEVICE void put_weights(shared<bf16> to, const Lane& lane) {
        if (above()) return;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float (&d)[4] = weights[i / 2][n];
                const int at = place<CHUNK>(row + 8 * i + lane.group, 16 * column + 8 * n + 2 * lane.place), e = i % 2 * 2;
                store(to + at, pack(d[e], d[e + 1]));
            }
        }
    }

    // With what it is above the diagonal by symmetry.
    DEVICE void put_solution(shared<bf16> square, const Lane& lane) {
        if (above()) return;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = row + 8 * i + lane.group;
#pragma unroll
            for (int n = 0; n < 2; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int to = 16 * column + 8 * n + 2 * lane.place + e;
                    const bf16 value = to_bf16(solution[i / 2][n][i % 2 * 2 + e]);
                    if (to <= at) square[place<CHUNK>(at, to)] = value;
                    if (to < at) square[place<CHUNK>(to, at)] = value;
                }
            }
        }
    }
};

}  // namespace delta
