// The gradients of queries, keys and gates of one chunk and key head, summed over its value heads in their order. With S the
// state before the chunk, dS the gradient of the one after it, and of each value head
//   dP = tril(dO N^T)    M = dV N^T    A = dP D / (|q| |k| key_dim^(1/2))    B = -strictly_lower(M D) / (|k| |k|)
// the gradients of q and k, through their lengths still to be divided by and with raw rows q, k, are
//   dq = E' dO S^T + A k      dk = -E'' dV S^T + K' N dS^T + A^T q + (B + B^T) k
// (E', E'', K' the factors READ, RECALL, KEEP). All that goes from one side of a token to the other makes its log decay's:
//   dg_t = sum_{i >= t > j} Z_ij + sum_{i >= t} <E' dO S^T, q>_i - <E'' dV S^T, k>_i + sum_{j < t} <K' N dS^T, k>_j
//          + exp(G_C) <dS, S>,      Z_ij = dP_ij P_ij + B_ij <k_i, k_j>
// Each of these is what a sum over i >= t of (row - column) sums leaves: the same f32 value is added and taken away, so what
// does not cross t leaves nothing even where decays are strong. (<dO, O> - <dV, V>, which says the same, would be a difference
// of two roundings.) The write strength's is db = (1 - beta) M_ii / beta.
//
// A block of 8 warps has 64 tokens; a warp 32 of them and 32 keys of dq and dk (96 f32 a thread, the part from dS by itself,
// since its products with k are wanted alone), and 32 x 16 of dP and M. Columns of the values are the depth: they pass by in
// tiles of 32, S and dS and dO, dV, N at once, the next being copied; so 99 KB are enough at any size of a head. For each tile
// 11 ldmatrix feed 32 mma. At 8k tokens: 52 GFLOP and 0.5 GB (mostly states): about 0.2 ms of an H200 are expected.
#include "delta_tiles.h"

namespace {

using namespace delta;

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

    // This thread's part of <q, dq> + <k, dk> - <k, kept> of its four rows, and of the last term of all of them.
    DEVICE void cross(const Tiles<DK>& tiles, const Lane& lane, float (&of_rows)[4], float& of_kept) {
        of_kept = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) of_rows[i] = 0.0f;
        if (!has_keys) return;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float moved = 0.0f;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int at = place<DK>(row + 8 * i + lane.group, 32 * column + 8 * n + 2 * lane.place);
                uint32_t of_q = load<uint32_t>(tiles.q + at), of_k = load<uint32_t>(tiles.k + at);
                const float (&dq)[4] = q[i / 2][n], (&dk)[4] = k[i / 2][n], (&dkept)[4] = kept[i / 2][n];
                const int e = i % 2 * 2;
                of_rows[i] += low(of_q) * dq[e] + high(of_q) * dq[e + 1] + low(of_k) * dk[e] + high(of_k) * dk[e + 1];
                moved += low(of_k) * dkept[e] + high(of_k) * dkept[e + 1];
            }
            of_rows[i] -= moved;
            of_kept += moved;
        }
    }

    // A, B and Z of a head, and M's diagonal: A and B stay in `weights` and `solution`, Z goes to sums of rows and columns.
    DEVICE void decay(const Tiles<DK>& tiles, const Lane& lane, const Problem& p, int head, float (&of_rows)[4],
                      float (&of_columns)[2][2]) {
#pragma unroll
        for (int n = 0; n < 2; n++) of_columns[n][0] = of_columns[n][1] = 0.0f;
        if (above()) return;
        shared<float> factors = tiles.factors_of(head);
        const float scale = 1.0f / sqrtf(float(p.dk));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = row + 8 * i + lane.group;
            const float sum = factors[at * FACTORS + SUM], of_q = tiles.q_inverse[at] * scale, of_k = tiles.k_inverse[at];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                // Of P, which is A with <q, k> in place of dP.
                uint32_t two = 0, two_kk = kk[i / 2][n][i % 2];
                const int64_t weight = ((p.first + at) * p.heads + head) * CHUNK + 16 * column + 8 * n + 2 * lane.place;
                if (at < p.rows) two = load<uint32_t>(p.weights + weight);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int to = 16 * column + 8 * n + 2 * lane.place + e, m = i / 2, v = i % 2 * 2 + e;
                    // Tokens that are not there have no sum, and could be infinitely far from one.
                    bool there = to <= at && at < p.rows;
                    float between = there ? fast_exp(sum - factors[to * FACTORS + SUM]) * tiles.k_inverse[to] : 0.0f;
                    if (to == at) tiles.diagonal[at] = solution[m][n][v];
                    const float product = weights[m][n][v];
                    float b = to < at ? -solution[m][n][v] * between * of_k : 0.0f;
                    weights[m][n][v] = product * between * of_q;
                    solution[m][n][v] = b;
                    float z = to < at ? product * (e ? high(two) : low(two)) + b * (e ? high(two_kk) : low(two_kk)) : 0.0f;
                    of_rows[i] += z;
                    of_columns[n][e] += z;
                }
            }
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

DEVICE float over_place(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

DEVICE float over_group(float value) {
    value += shuffle_xor(value, 4);
    value += shuffle_xor(value, 8);
    return value + shuffle_xor(value, 16);
}

// From the sums of a head to the gradients of its gates, by one warp: a thread has two tokens.
template <int DK> DEVICE void gates(const Tiles<DK>& tiles, const Lane& lane, const Problem& p, int member) {
    const int head = p.key_head * p.per_key + member;
    float crossing[2], total = 0.0f;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        shared<float> of_row = tiles.row_sums() + (2 * lane.number + e), of_column = tiles.column_sums() + (2 * lane.number + e);
        crossing[e] = of_row[0] + of_row[CHUNK] + of_row[2 * CHUNK] + of_row[3 * CHUNK] - of_column[0] - of_column[CHUNK];
    }
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) total += tiles.totals[i];
    // The sum from a token on.
    float sum = crossing[0] + crossing[1];
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        float after = shuffle_down(sum, by);
        if (lane.number + by < 32) sum += after;
    }
    float next = shuffle_down(sum, 1), decay[2];
    decay[1] = (lane.number < 31 ? next : 0.0f) + crossing[1] + total;
    decay[0] = decay[1] + crossing[0];
    const float rate = expf(p.a_log[head]), bias = p.dt_bias[head];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = 2 * lane.number + e;
        if (row >= p.rows) continue;
        const int64_t at = (p.first + row) * 2 * p.heads + p.key_head * 2 * p.per_key + member;
        // (1 - beta) / beta, where beta is not 0.
        const float odds = expf(-to_float(p.ba[at])), x = to_float(p.ba[at + p.per_key]) + bias;
        const float slope = x > SOFTPLUS_LINEAR ? 1.0f : 1.0f / (1.0f + expf(-x));
        p.dba[at] = to_bf16(1.0f / (1.0f + odds) > 0.0f ? odds * tiles.diagonal[row] : 0.0f);
        p.dba[at + p.per_key] = to_bf16(-decay[e] * rate * slope);
    }
}

// All tiles of a head have been added.
template <int DK>
DEVICE void finish_head(Gradients<DK>& gradients, const Tiles<DK>& tiles, const Lane& lane, const Problem& p, int member) {
    const int warp = threadIdx.x / 32, head = p.key_head * p.per_key + member;
    float of_rows[4], of_columns[2][2], kept;
    gradients.cross(tiles, lane, of_rows, kept);
    kept -= gradients.kept_all;
#pragma unroll
    for (int i = 0; i < 4; i++) of_rows[i] -= gradients.crossing[i];
    gradients.decay(tiles, lane, p, head, of_rows, of_columns);
    gradients.within(tiles, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float sum = over_place(of_rows[i]);
        if (lane.place == 0) tiles.row_sums()[gradients.column * CHUNK + gradients.row + 8 * i + lane.group] = sum;
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float sum = over_group(of_columns[n][e]);
            int to = 16 * gradients.column + 8 * n + 2 * lane.place + e;
            if (lane.group == 0) tiles.column_sums()[gradients.row / 32 * CHUNK + to] = sum;
        }
    }
    // A chunk that a state follows is whole.
    if (p.after != NO_STATE) kept += whole_decay(tiles.factors_of(head)) * gradients.through;
    float all = over_group(over_place(kept));
    if (lane.number == 0) tiles.totals[warp] = all;
    sync_block();
    if (warp == 0) gates(tiles, lane, p, member);
    if (member + 1 == p.per_key) return;
    gradients.through = 0.0f;
    gradients.cross(tiles, lane, gradients.crossing, gradients.kept_all);
#pragma unroll
    for (int m = 0; m < 2; m++) {
        clear(gradients.weights[m]);
        clear(gradients.solution[m]);
    }
}

// Through the lengths of q and k, and out.
template <int DK>
DEVICE void finish(Gradients<DK>& gradients, const Tiles<DK>& tiles, const Lane& lane, const Problem& p) {
    shared<float> along_q = tiles.row_sums(), along_k = along_q + 4 * CHUNK;
    shared<bf16> dq = tiles.stages, dk = dq + CHUNK * DK;
    const int row = gradients.row, column = gradients.column;
    sync_block();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = row + 8 * i + lane.group, e = i % 2 * 2;
        float of_q = 0.0f, of_k = 0.0f;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (!gradients.has_keys) break;
            float (&q)[4] = gradients.q[i / 2][n], (&k)[4] = gradients.k[i / 2][n];
            const float (&kept)[4] = gradients.kept[i / 2][n];
            k[e] += kept[e];
            k[e + 1] += kept[e + 1];
            const int from = place<DK>(at, 32 * column + 8 * n + 2 * lane.place);
            const uint32_t raw_q = load<uint32_t>(tiles.q + from), raw_k = load<uint32_t>(tiles.k + from);
            of_q += low(raw_q) * q[e] + high(raw_q) * q[e + 1];
            of_k += low(raw_k) * k[e] + high(raw_k) * k[e + 1];
        }
        of_q = over_place(of_q);
        of_k = over_place(of_k);
        if (lane.place == 0) {
            along_q[column * CHUNK + at] = of_q;
            along_k[column * CHUNK + at] = of_k;
        }
    }
    sync_block();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (!gradients.has_keys) break;
        const int at = row + 8 * i + lane.group, e = i % 2 * 2;
        float of_q = 0.0f, of_k = 0.0f;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            of_q += along_q[w * CHUNK + at];
            of_k += along_k[w * CHUNK + at];
        }
        of_q *= tiles.q_inverse[at] * tiles.q_inverse[at];
        of_k *= tiles.k_inverse[at] * tiles.k_inverse[at];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float (&q)[4] = gradients.q[i / 2][n], (&k)[4] = gradients.k[i / 2][n];
            const int from = place<DK>(at, 32 * column + 8 * n + 2 * lane.place);
            const uint32_t raw_q = load<uint32_t>(tiles.q + from), raw_k = load<uint32_t>(tiles.k + from);
            store(dq + from, pack(q[e] - of_q * low(raw_q), q[e + 1] - of_q * high(raw_q)));
            store(dk + from, pack(k[e] - of_k * low(raw_k), k[e + 1] - of_k * high(raw_k)));
        }
    }
    sync_block();
    for (int at = threadIdx.x; at < p.rows * (DK / 8); at += THREADS) {
        const int token = at / (DK / 8), key = at % (DK / 8) * 8;
        if (key >= p.dk) continue;
        const int64_t to = (p.first + token) * p.width + p.key_head * p.dk + key;
        store(p.dqkv + to, load<uint4>(dq + place<DK>(token, key)));
        store(p.dqkv + (to + p.key_heads * p.dk), load<uint4>(dk + place<DK>(token, key)));
    }
}

template <int DK> DEVICE void gradients(const Problem& p) {
    DYNAMIC_SHARED(bf16, memory);
    const Tiles<DK> tiles(memory);
    const Lane lane;
    const int thread = threadIdx.x, depth = (p.dv + DEPTH - 1) / DEPTH, all = p.per_key * depth;
    const int head = p.key_head * p.per_key;
    const bool has_state = p.before != NO_STATE, has_dstate = p.after != NO_STATE;

    global<const bf16> of_q = p.qkv + (p.first * p.width + p.key_head * p.dk);
    load_tile<CHUNK, DK>(tiles.q, of_q, p.width, p.rows, p.dk, thread, THREADS);
    load_tile<CHUNK, DK>(tiles.k, of_q + p.key_heads * p.dk, p.width, p.rows, p.dk, thread, THREADS);
    commit_async();
    load_stage(tiles.stage(0, head), p, head, 0);
    commit_async();
    wait_async<1>();
    sync_block();
    Gradients<DK> gradients(thread / 32);
    gradients.square(tiles, lane);
    if (thread < CHUNK) {
        tiles.q_inverse[thread] = inverse_length<DK>(tiles.q, thread);
    } else if (thread < 2 * CHUNK) {
        tiles.k_inverse[thread - CHUNK] = inverse_length<DK>(tiles.k, thread - CHUNK);
    }
    for (int number = 0; number < all; number++) {
        const int member = number / depth, next = number + 1;
        if (next < all) load_stage(tiles.stage(next, head + next / depth), p, head + next / depth, next % depth * DEPTH);
        commit_async();
        wait_async<1>();
        sync_block();
        const Stage<DK> stage = tiles.stage(number, head + member);
        gradients.add(stage, lane, has_state, has_dstate);
        if (has_state && has_dstate) gradients.pass(stage);
        if (next % depth == 0) finish_head(gradients, tiles, lane, p, member);
        sync_block();
    }
    finish(gradients, tiles, lane, p);
}

}  // namespace

#define GRADIENTS(name, DK)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                             \
        name(global<const bf16> qkv, global<const bf16> ba, global<const float> a_log, global<const float> dt_bias,      \
             global<const uint32_t> chunks, global<const float> factors, global<const bf16> weights,                     \
             global<const bf16> states, global<const bf16> written, global<const bf16> dstates, global<const bf16> dout, \
             global<bf16> dqkv, global<bf16> dba, int key_heads, int per_key, int dk, int dv) {                          \
        const Given given = {qkv, ba, weights, dout, written, states, dstates, factors, a_log, dt_bias, dqkv, dba};      \
        gradients<DK>(Problem(given, chunks, key_heads, per_key, dk, dv));                                               \
    }

GRADIENTS(delta_gradients_32, 32)
KERNEL(delta_gradients_32)
GRADIENTS(delta_gradients_128, 128)
KERNEL(delta_gradients_128)
