// Gated norm per value head: y = w ⊙ o ρ ⊙ silu(z), ρ = 1 / sqrt(mean(o²) + ε), z in place in the grouped projection.
//
//   backward   n = w ⊙ o ρ;  dz = dy ⊙ n ⊙ silu'(z);  g = dy ⊙ silu(z) ⊙ w;  do = ρ g - o ρ³ mean(g ⊙ o)
//
// Bound by memory, 3 and 5 passes over [tokens, value heads]: a piece of 16 bytes of each takes some 180 and 270
// instructions, where the bandwidth of an H200 leaves time for 300 and 500.
#include "heads.h"

namespace {

// Of the z that belongs to a head: head h of all rows is member h % r of group h / r of all rows.
DEVICE uint64_t gate_place(int head, int r, int group_width, int gate_start, int value_dim) {
    int group = unsigned(head) / unsigned(r);
    return uint64_t(group) * group_width + (gate_start + (head - group * r) * value_dim);
}

template <int V>
DEVICE void forward(global<const bf16> o, global<const bf16> qkvz, global<const float> weight, float epsilon, global<bf16> y,
                    const Heads<V>& part, int r, int group_width, int gate_start) {
    constexpr int N = Heads<V>::COUNT, PIECES = Heads<V>::PIECES;
    Packed<V> values[N][PIECES] = {}, gates[N][PIECES] = {};
#pragma unroll
    for (int h = 0; h < N; h++) {
        uint64_t gate = gate_place(part.head(h), r, group_width, gate_start, part.head_dim);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (!part.has(h, i)) continue;
            values[h][i] = stream<V>(o + uint64_t(part.head(h)) * part.head_dim + part.place(i));
            gates[h][i] = stream<V>(qkvz + gate + part.place(i));
        }
    }
    float squares[N] = {};
    add_squares(values, squares);
    sum_over_lanes(squares, part.lanes);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float w[V] = {};
        if (part.place(i) < part.head_dim) load_floats<V>(weight + part.place(i), w);
#pragma unroll
        for (int h = 0; h < N; h++) {
            float inverse = reciprocal_root(quotient(squares[h], float(part.head_dim)) + epsilon);
            float v[V], z[V];
            widen(values[h][i], v);
            widen(gates[h][i], z);
#pragma unroll
            for (int k = 0; k < V; k++) v[k] *= inverse * w[k] * (z[k] * sigmoid(z[k]));
            if (part.has(h, i)) store(y + uint64_t(part.head(h)) * part.head_dim + part.place(i), narrow(v));
        }
    }
}

template <int V>
DEVICE void backward(global<const bf16> o, global<const bf16> qkvz, global<const float> weight, float epsilon,
                     global<const bf16> dy, global<bf16> d_o, global<bf16> d_qkvz, const Heads<V>& part, int r, int group_width,
                     int gate_start) {
    constexpr int N = Heads<V>::COUNT, PIECES = Heads<V>::PIECES;
    Packed<V> values[N][PIECES] = {}, gates[N][PIECES] = {}, upstream[N][PIECES] = {};
#pragma unroll
    for (int h = 0; h < N; h++) {
        uint64_t gate = gate_place(part.head(h), r, group_width, gate_start, part.head_dim);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (!part.has(h, i)) continue;
            uint64_t at = uint64_t(part.head(h)) * part.head_dim + part.place(i);
            values[h][i] = stream<V>(o + at);
            gates[h][i] = stream<V>(qkvz + gate + part.place(i));
            upstream[h][i] = stream<V>(dy + at);
        }
    }
    // g = dy ⊙ w ⊙ silu(z), and dy ⊙ w ⊙ o ⊙ silu'(z); Σ o² of each head, then Σ g o of each.
    float g[N][PIECES][V], dz[N][PIECES][V], sums[2 * N] = {};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float w[V] = {};
        if (part.place(i) < part.head_dim) load_floats<V>(weight + part.place(i), w);
#pragma unroll
        for (int h = 0; h < N; h++) {
            float v[V], z[V], d[V];
            widen(values[h][i], v);
            widen(gates[h][i], z);
            widen(upstream[h][i], d);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float s = sigmoid(z[k]), through = d[k] * w[k];
                g[h][i][k] = through * (z[k] * s);
                dz[h][i][k] = through * v[k] * silu_slope(z[k], s);
                sums[h] = fused(v[k], v[k], sums[h]);
                sums[N + h] = fused(g[h][i][k], v[k], sums[N + h]);
            }
        }
    }
    sum_over_lanes(sums, part.lanes);
    float mean = quotient(1.0f, float(part.head_dim));
#pragma unroll
    for (int h = 0; h < N; h++) {
        float inverse = reciprocal_root(sums[h] * mean + epsilon);
        float shared_part = sums[N + h] * mean * inverse * inverse * inverse;
        uint64_t gate = gate_place(part.head(h), r, group_width, gate_start, part.head_dim);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (!part.has(h, i)) continue;
            float v[V];
            widen(values[h][i], v);
#pragma unroll
            for (int k = 0; k < V; k++) {
                v[k] = g[h][i][k] * inverse - v[k] * shared_part;
                dz[h][i][k] *= inverse;
            }
            store(d_o + uint64_t(part.head(h)) * part.head_dim + part.place(i), narrow(v));
            store(d_qkvz + gate + part.place(i), narrow(dz[h][i]));
        }
    }
}

}  // namespace

#define FORWARD(name, V)                                                                                               \
    extern "C" __global__ void OF_HEADS name(global<const bf16> o, global<const bf16> qkvz, global<const float> weight, \
                                             float epsilon, global<bf16> y, int heads, int head_dim, int lanes, int r,  \
                                             int group_width, int gate_start) {                                        \
        forward<V>(o, qkvz, weight, epsilon, y, Heads<V>(heads, head_dim, lanes), r, group_width, gate_start);         \
    }

FORWARD(gated_norm_forward, 8)
KERNEL(gated_norm_forward)
FORWARD(gated_norm_forward_any, 1)
KERNEL(gated_norm_forward_any)

#define BACKWARD(name, V)                                                                                              \
    extern "C" __global__ void OF_HEADS name(global<const bf16> o, global<const bf16> qkvz, global<const float> weight, \
                                             float epsilon, global<const bf16> dy, global<bf16> d_o, global<bf16> d_qkvz, \
                                             int heads, int head_dim, int lanes, int r, int group_width, int gate_start) { \
        backward<V>(o, qkvz, weight, epsilon, dy, d_o, d_qkvz, Heads<V>(heads, head_dim, lanes), r, group_width, gate_start); \
    }

BACKWARD(gated_norm_backward, 8)
KERNEL(gated_norm_backward)
BACKWARD(gated_norm_backward_any, 1)
KERNEL(gated_norm_backward_any)
