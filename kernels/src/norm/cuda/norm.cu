// RMS norm of rows, h = x + delta before it and the residual's gradient behind it in the same pass.
//
//   forward    h = x + delta (rounded);  y = s ⊙ h ρ,  ρ = 1 / sqrt(mean(h²) + ε)
//   backward   dx = residual + ρ (s ⊙ dy) - h ρ³ mean(s ⊙ dy ⊙ h)
//
// Bound by memory: 2 to 4 rows of 2 bytes a value go by, and nothing is read twice but s, which the first-level cache
// keeps: 4 bytes a value from there, where a multiprocessor has six times the bandwidth of its share of the memory. ρ is
// computed again in the backward pass: its sum runs along with the other one.
#include "rows.h"

namespace {

template <int V, int WARPS>
DEVICE void forward(global<const bf16> x, global<const bf16> delta, global<const float> scale, float epsilon,
                    global<bf16> h, global<bf16> y, int rows, int width) {
    const Row<V, WARPS> row(rows, width);
    Packed<V> values[PIECES];
    if (x) {
        row.read(x, values);
    } else {
        row.read_own(h, values);
    }
    if (delta) {
        Packed<V> deltas[PIECES];
        row.read(delta, deltas);
#pragma unroll
        for (int i = 0; i < PIECES; i++) values[i] = sum(values[i], deltas[i]);
        row.write(h, values);
    }
    float squares[1] = {0};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[V];
        widen(values[i], v);
#pragma unroll
        for (int k = 0; k < V; k++) squares[0] = fused(v[k], v[k], squares[0]);
    }
    row.sum_over(squares);
    float inverse = reciprocal_root(quotient(squares[0], float(width)) + epsilon);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        if (!row.has(i)) continue;
        float v[V], s[V];
        widen(values[i], v);
        load_floats<V>(scale + row.place(i), s);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] *= inverse * s[k];
        store(y + row.first + row.place(i), narrow(v));
    }
}

template <int V, int WARPS>
DEVICE void backward(global<const bf16> h, global<const bf16> dy, global<const float> scale, float epsilon,
                     global<const bf16> residual, global<bf16> dx, int add_to_dx, int rows, int width) {
    const Row<V, WARPS> row(rows, width);
    Packed<V> values[PIECES], upstream[PIECES], others[PIECES] = {};
    row.read(h, values);
    row.read(dy, upstream);
    if (residual) {
        row.read(residual, others);
    } else if (add_to_dx) {
        row.read_own(dx, others);
    }
    // Σ h² and Σ s dy h
    float sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        if (!row.has(i)) continue;
        float v[V], d[V], s[V];
        widen(values[i], v);
        widen(upstream[i], d);
        load_floats<V>(scale + row.place(i), s);
#pragma unroll
        for (int k = 0; k < V; k++) {
            sums[0] = fused(v[k], v[k], sums[0]);
            sums[1] = fused(s[k] * d[k], v[k], sums[1]);
        }
    }
    row.sum_over(sums);
    float mean = quotient(1.0f, float(width));
    float inverse = reciprocal_root(sums[0] * mean + epsilon);
    float shared_part = sums[1] * mean * inverse * inverse * inverse;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        if (!row.has(i)) continue;
        float v[V], d[V], s[V], other[V];
        widen(values[i], v);
        widen(upstream[i], d);
        widen(others[i], other);
        load_floats<V>(scale + row.place(i), s);
#pragma unroll
        for (int k = 0; k < V; k++) other[k] += s[k] * d[k] * inverse - v[k] * shared_part;
        store(dx + row.first + row.place(i), narrow(other));
    }
}

}  // namespace

#define FORWARD(bounds, name, V, WARPS)                                                                              \
    extern "C" __global__ void bounds name(global<const bf16> x, global<const bf16> delta, global<const float> scale, \
                                           float epsilon, global<bf16> h, global<bf16> y, int rows, int width) {      \
        forward<V, WARPS>(x, delta, scale, epsilon, h, y, rows, width);                                               \
    }

FORWARD(SHORT_ROWS, norm_forward_short, 8, 2)
KERNEL(norm_forward_short)
FORWARD(LONG_ROWS, norm_forward_long, 8, 8)
KERNEL(norm_forward_long)
FORWARD(ANY_ROWS, norm_forward_any, 1, 32)
KERNEL(norm_forward_any)

#define BACKWARD(bounds, name, V, WARPS)                                                                            \
    extern "C" __global__ void bounds name(global<const bf16> h, global<const bf16> dy, global<const float> scale,   \
                                           float epsilon, global<const bf16> residual, global<bf16> dx, int add_to_dx, \
                                           int rows, int width) {                                                    \
        backward<V, WARPS>(h, dy, scale, epsilon, residual, dx, add_to_dx, rows, width);                             \
    }

BACKWARD(SHORT_ROWS, norm_backward_short, 8, 2)
KERNEL(norm_backward_short)
BACKWARD(LONG_ROWS, norm_backward_long, 8, 8)
KERNEL(norm_backward_long)
BACKWARD(ANY_ROWS, norm_backward_any, 1, 32)
KERNEL(norm_backward_any)
