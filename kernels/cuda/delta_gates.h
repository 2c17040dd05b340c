// From what a block of delta_gradients has added up to the gradients of the gates: what goes from one side of a token to the
// other makes the gradient of its log decay (the formulas stand in delta_gradients.cu).
#pragma once

#include "delta_products.h"

namespace delta {

DEVICE float over_place(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

DEVICE float over_group(float value) {
    value += shuffle_xor(value, 4);
    value += shuffle_xor(value, 8);
    return value + shuffle_xor(value, 16);
}

// This thread's part of <q, dq> + <k, dk> - <k, kept> of its four rows, and of the last term of all of them.
template <int DK>
DEVICE void cross(const Gradients<DK>& of, const Tiles<DK>& tiles, const Lane& lane, float (&of_rows)[4], float& of_kept) {
    of_kept = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) of_rows[i] = 0.0f;
    if (!of.has_keys) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float moved = 0.0f;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int at = place<DK>(of.row + 8 * i + lane.group, 32 * of.column + 8 * n + 2 * lane.place);
            uint32_t of_q = load<uint32_t>(tiles.q + at), of_k = load<uint32_t>(tiles.k + at);
            const float (&dq)[4] = of.q[i / 2][n], (&dk)[4] = of.k[i / 2][n], (&dkept)[4] = of.kept[i / 2][n];
            const int e = i % 2 * 2;
            of_rows[i] += low(of_q) * dq[e] + high(of_q) * dq[e + 1] + low(of_k) * dk[e] + high(of_k) * dk[e + 1];
            moved += low(of_k) * dkept[e] + high(of_k) * dkept[e + 1];
        }
        of_rows[i] -= moved;
        of_kept += moved;
    }
}

// A, B and Z of a head, and M's diagonal: A and B stay in `weights` and `solution`, Z goes to sums of rows and columns.
template <int DK>
DEVICE void decay(Gradients<DK>& of, const Tiles<DK>& tiles, const Lane& lane, const Problem& p, int head, float (&of_rows)[4],
                  float (&of_columns)[2][2]) {
#pragma unroll
    for (int n = 0; n < 2; n++) of_columns[n][0] = of_columns[n][1] = 0.0f;
    if (of.above()) return;
    shared<float> factors = tiles.factors_of(head);
    const float scale = 1.0f / sqrtf(float(p.dk));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = of.row + 8 * i + lane.group;
        const float sum = factors[at * FACTORS + SUM], of_q = tiles.q_inverse[at] * scale, of_k = tiles.k_inverse[at];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            // Of P, which is A with <q, k> in place of dP.
            uint32_t two = 0, two_kk = of.kk[i / 2][n][i % 2];
            const int64_t weight = ((p.first + at) * p.heads + head) * CHUNK + 16 * of.column + 8 * n + 2 * lane.place;
            if (at < p.rows) two = load<uint32_t>(p.weights + weight);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int to = 16 * of.column + 8 * n + 2 * lane.place + e, m = i / 2, v = i % 2 * 2 + e;
                // Tokens that are not there have no sum, and could be infinitely far from one.
                bool there = to <= at && at < p.rows;
                float between = there ? fast_exp(sum - factors[to * FACTORS + SUM]) * tiles.k_inverse[to] : 0.0f;
                if (to == at) tiles.diagonal[at] = of.solution[m][n][v];
                const float product = of.weights[m][n][v];
                float b = to < at ? -of.solution[m][n][v] * between * of_k : 0.0f;
                of.weights[m][n][v] = product * between * of_q;
                of.solution[m][n][v] = b;
                float z = to < at ? product * (e ? high(two) : low(two)) + b * (e ? high(two_kk) : low(two_kk)) : 0.0f;
                of_rows[i] += z;
                of_columns[n][e] += z;
            }
        }
    }
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
        // Nothing crosses a token that forgets all; what the sums leave there, a rate without limit would make large.
        p.dba[at + p.per_key] = to_bf16(log_decay(rate, x) > FORGOTTEN ? -decay[e] * rate * slope : 0.0f);
    }
}

}  // namespace delta
