// Heads of q or k between projection and attention: y = rotate(s ⊙ x ρ), ρ = 1 / sqrt(mean(x²) + ε), the norm left out
// where a model has none. The rotation turns (x_i, x_{i + half}) by the angle of i and the row's position; what lies behind
// 2 half passes. Backward: the rotation by the negative angle, then through the norm.
//
// Bound by memory: one read of the heads (those of q are every other 512 bytes of the projection) and one write, two reads
// backward. The value that is turned with one's own lies with another lane of the head; reading its piece again costs a
// hit in the first-level cache, and cosines and sines are read once there by all heads of a row.
#include "heads.h"

namespace {

// Cosines and sines for V values of a head from `place` on. Behind the rotation an angle of 0.
template <int V> struct Turn {
    float cosines[V], sines[V];

    DEVICE Turn(global<const float> table, uint32_t position, int place, int half) {
        if (place < 2 * half) {
            global<const float> at = table + uint64_t(position) * (2 * half) + (place < half ? place : place - half);
            load_floats<V>(at, cosines);
            load_floats<V>(at + half, sines);
        } else {
#pragma unroll
            for (int k = 0; k < V; k++) cosines[k] = 1, sines[k] = 0;
        }
    }
};

// Of the value that one is turned with.
DEVICE int partner(int place, int half) {
    return place < half ? place + half : place < 2 * half ? place - half : place;
}
DEVICE float sign(int place, int half) { return place < half ? -1.0f : 1.0f; }

struct Places {
    int heads_of_row, source_stride, half;

    DEVICE uint64_t source(int head) const { return uint64_t(head) * source_stride; }
    DEVICE int row(int head) const { return unsigned(head) / unsigned(heads_of_row); }
};

template <int V> DEVICE void scales(global<const float> scale, int place, bool has, float (&values)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++) values[k] = 1;
    if (scale && has) load_floats<V>(scale + place, values);
}

template <int V>
DEVICE void forward(global<const bf16> x, global<const float> scale, float epsilon, global<const float> table,
                    global<const uint32_t> positions, global<bf16> y, const Heads<V>& part, const Places& places) {
    constexpr int N = Heads<V>::COUNT, PIECES = Heads<V>::PIECES;
    Packed<V> values[N][PIECES] = {}, others[N][PIECES] = {};
    uint32_t position[N] = {};
#pragma unroll
    for (int h = 0; h < N; h++) {
        if (part.head(h) >= part.end) continue;
        position[h] = positions[places.row(part.head(h))];
        global<const bf16> source = x + places.source(part.head(h));
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (!part.has(h, i)) continue;
            values[h][i] = load<Packed<V>>(source + part.place(i));
            others[h][i] = load<Packed<V>>(source + partner(part.place(i), places.half));
        }
    }
    float squares[N] = {};
    add_squares(values, squares);
    if (scale) sum_over_lanes(squares, part.lanes);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float s[V], s_other[V];
        bool inside = part.place(i) < part.head_dim;
        scales(scale, part.place(i), inside, s);
        scales(scale, partner(part.place(i), places.half), inside, s_other);
#pragma unroll
        for (int k = 0; k < V; k++) s_other[k] *= sign(part.place(i), places.half);
#pragma unroll
        for (int h = 0; h < N; h++) {
            if (!part.has(h, i)) continue;
            float inverse = scale ? reciprocal_root(quotient(squares[h], float(part.head_dim)) + epsilon) : 1.0f;
            float v[V], other[V];
            widen(values[h][i], v);
            widen(others[h][i], other);
            Turn<V> turn(table, position[h], part.place(i), places.half);
#pragma unroll
            for (int k = 0; k < V; k++) {
                v[k] = inverse * (v[k] * s[k] * turn.cosines[k] + other[k] * s_other[k] * turn.sines[k]);
            }
            store(y + uint64_t(part.head(h)) * part.head_dim + part.place(i), narrow(v));
        }
    }
}

template <int V>
DEVICE void backward(global<const bf16> x, global<const float> scale, float epsilon, global<const float> table,
                     global<const uint32_t> positions, global<const bf16> dy, global<bf16> dx, const Heads<V>& part,
                     const Places& places) {
    constexpr int N = Heads<V>::COUNT, PIECES = Heads<V>::PIECES;
    Packed<V> values[N][PIECES] = {}, upstream[N][PIECES] = {}, others[N][PIECES] = {};
    uint32_t position[N] = {};
#pragma unroll
    for (int h = 0; h < N; h++) {
        if (part.head(h) >= part.end) continue;
        position[h] = positions[places.row(part.head(h))];
        global<const bf16> head = dy + uint64_t(part.head(h)) * part.head_dim;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (!part.has(h, i)) continue;
            upstream[h][i] = load<Packed<V>>(head + part.place(i));
            others[h][i] = load<Packed<V>>(head + partner(part.place(i), places.half));
            if (scale) values[h][i] = stream<V>(x + places.source(part.head(h)) + part.place(i));
        }
    }
    // s ⊙ the upstream gradient turned back; Σ x² of each head, then Σ of it times x.
    float turned[N][PIECES][V] = {}, sums[2 * N] = {};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float s[V], back = -sign(part.place(i), places.half);
        scales(scale, part.place(i), part.place(i) < part.head_dim, s);
#pragma unroll
        for (int h = 0; h < N; h++) {
            if (!part.has(h, i)) continue;
            float v[V], d[V], other[V];
            widen(values[h][i], v);
            widen(upstream[h][i], d);
            widen(others[h][i], other);
            Turn<V> turn(table, position[h], part.place(i), places.half);
#pragma unroll
            for (int k = 0; k < V; k++) {
                turned[h][i][k] = s[k] * (d[k] * turn.cosines[k] + back * other[k] * turn.sines[k]);
                sums[h] = fused(v[k], v[k], sums[h]);
                sums[N + h] = fused(turned[h][i][k], v[k], sums[N + h]);
            }
        }
    }
    if (scale) sum_over_lanes(sums, part.lanes);
    float mean = quotient(1.0f, float(part.head_dim));
#pragma unroll
    for (int h = 0; h < N; h++) {
        float inverse = scale ? reciprocal_root(sums[h] * mean + epsilon) : 1.0f;
        float shared_part = scale ? sums[N + h] * mean * inverse * inverse * inverse : 0.0f;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (!part.has(h, i)) continue;
            float v[V];
            widen(values[h][i], v);
#pragma unroll
            for (int k = 0; k < V; k++) v[k] = turned[h][i][k] * inverse - v[k] * shared_part;
            store(dx + places.source(part.head(h)) + part.place(i), narrow(v));
        }
    }
}

}  // namespace

#define FORWARD(name, V)                                                                                              \
    extern "C" __global__ void OF_HEADS name(global<const bf16> x, global<const float> scale, float epsilon,           \
                                             global<const float> table, global<const uint32_t> positions,              \
                                             global<bf16> y, int heads, int head_dim, int lanes, int heads_of_row,     \
                                             int source_stride, int half) {                                            \
        forward<V>(x, scale, epsilon, table, positions, y, Heads<V>(heads, head_dim, lanes),                           \
                   Places{heads_of_row, source_stride, half});                                                         \
    }

FORWARD(rope_forward, 8)
KERNEL(rope_forward)
FORWARD(rope_forward_any, 1)
KERNEL(rope_forward_any)

#define BACKWARD(name, V)                                                                                             \
    extern "C" __global__ void OF_HEADS name(global<const bf16> x, global<const float> scale, float epsilon,           \
                                             global<const float> table, global<const uint32_t> positions,              \
                                             global<const bf16> dy, global<bf16> dx, int heads, int head_dim, int lanes, \
                                             int heads_of_row, int source_stride, int half) {                          \
        backward<V>(x, scale, epsilon, table, positions, dy, dx, Heads<V>(heads, head_dim, lanes),                     \
                    Places{heads_of_row, source_stride, half});                                                        \
    }

BACKWARD(rope_backward, 8)
KERNEL(rope_backward)
BACKWARD(rope_backward_any, 1)
KERNEL(rope_backward_any)
