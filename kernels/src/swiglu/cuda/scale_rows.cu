// Rows scaled by a gate each: out = σ(g) y, or out += σ(g) y; dy = σ dout, dg = σ (1 - σ) Σ y ⊙ dout.
#include "rows.h"

namespace {

template <int V, int WARPS>
DEVICE void forward(global<const bf16> y, global<const bf16> gates, global<bf16> out, int add_to_out, int rows, int width) {
    const Row<V, WARPS> row(rows, width);
    Packed<V> values[PIECES], sums[PIECES] = {};
    row.read(y, values);
    if (add_to_out) row.read_own(out, sums);
    float s = row.width ? sigmoid(to_float(gates[row.row])) : 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[V], sum[V];
        widen(values[i], v);
        widen(sums[i], sum);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] = fused(s, v[k], sum[k]);
        sums[i] = narrow(sum);
    }
    row.write(out, sums);
}

template <int V, int WARPS>
DEVICE void backward(global<const bf16> y, global<const bf16> gates, global<const bf16> d_out, global<bf16> d_y,
                     global<bf16> d_gates, int rows, int width) {
    const Row<V, WARPS> row(rows, width);
    Packed<V> values[PIECES], upstream[PIECES];
    row.read(y, values);
    row.read(d_out, upstream);
    float s = row.width ? sigmoid(to_float(gates[row.row])) : 0.0f;
    float product[1] = {0};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        float v[V], d[V];
        widen(values[i], v);
        widen(upstream[i], d);
#pragma unroll
        for (int k = 0; k < V; k++) {
            product[0] = fused(v[k], d[k], product[0]);
            d[k] *= s;
        }
        upstream[i] = narrow(d);
    }
    row.write(d_y, upstream);
    row.sum_over(product);
    if (row.width && row.lane == 0) d_gates[row.row] = to_bf16(s * (1.0f - s) * product[0]);
}

}  // namespace

#define FORWARD(bounds, name, V, WARPS)                                                                         \
    extern "C" __global__ void bounds name(global<const bf16> y, global<const bf16> gates, global<bf16> out,    \
                                           int add_to_out, int rows, int width) {                               \
        forward<V, WARPS>(y, gates, out, add_to_out, rows, width);                                              \
    }

FORWARD(SHORT_ROWS, scale_rows_forward_short, 8, 2)
KERNEL(scale_rows_forward_short)
FORWARD(LONG_ROWS, scale_rows_forward_long, 8, 8)
KERNEL(scale_rows_forward_long)
FORWARD(ANY_ROWS, scale_rows_forward_any, 1, 32)
KERNEL(scale_rows_forward_any)

#define BACKWARD(bounds, name, V, WARPS)                                                                             \
    extern "C" __global__ void bounds name(global<const bf16> y, global<const bf16> gates, global<const bf16> d_out, \
                                           global<bf16> d_y, global<bf16> d_gates, int rows, int width) {            \
        backward<V, WARPS>(y, gates, d_out, d_y, d_gates, rows, width);                                              \
    }

BACKWARD(SHORT_ROWS, scale_rows_backward_short, 8, 2)
KERNEL(scale_rows_backward_short)
BACKWARD(LONG_ROWS, scale_rows_backward_long, 8, 8)
KERNEL(scale_rows_backward_long)
BACKWARD(ANY_ROWS, scale_rows_backward_any, 1, 32)
KERNEL(scale_rows_backward_any)
