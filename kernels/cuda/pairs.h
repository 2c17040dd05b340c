// Two arguments that meet value by value, each in rows at its own distance: y = F(a, b), and both gradients, which lie as
// their arguments do.
//
// Bound by memory: a thread has 4 pieces of 16 bytes of every argument under way; neighbouring threads have neighbouring
// pieces. Each piece costs one division (its row) and 8 sigmoids, half of what an H200's bandwidth leaves time for.
//
// F has `value(a, b)` and `gradients(a, b, d)`, which makes a's gradient of a, and b's of b.
#pragma once

#include "values.h"

// Where the rows are: values from one to the next, and pieces of one.
struct Strides {
    int a, b, of_row;
};

template <int V, class F>
DEVICE void pairs_forward(global<const bf16> a, global<const bf16> b, global<bf16> y, int pieces, Strides strides) {
    constexpr int ITEMS = 4;
    int first = int(blockIdx.x) * ITEMS * int(blockDim.x) + int(threadIdx.x);
    Packed<V> left[ITEMS] = {}, right[ITEMS] = {};
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int piece = first + i * int(blockDim.x);
        if (piece >= pieces) continue;
        int row = unsigned(piece) / unsigned(strides.of_row), place = (piece - row * strides.of_row) * V;
        left[i] = stream<V>(a + uint64_t(row) * strides.a + place);
        right[i] = stream<V>(b + uint64_t(row) * strides.b + place);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int piece = first + i * int(blockDim.x);
        if (piece >= pieces) continue;
        float x[V], z[V];
        widen(left[i], x);
        widen(right[i], z);
#pragma unroll
        for (int k = 0; k < V; k++) x[k] = F::value(x[k], z[k]);
        store(y + uint64_t(piece) * V, narrow(x));
    }
}

template <int V, class F>
DEVICE void pairs_backward(global<const bf16> a, global<const bf16> b, global<const bf16> dy, global<bf16> da, global<bf16> db,
                           int pieces, Strides strides) {
    constexpr int ITEMS = 4;
    int first = int(blockIdx.x) * ITEMS * int(blockDim.x) + int(threadIdx.x);
    Packed<V> left[ITEMS] = {}, right[ITEMS] = {}, upstream[ITEMS] = {};
    int rows[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int piece = first + i * int(blockDim.x);
        rows[i] = unsigned(piece) / unsigned(strides.of_row);
        if (piece >= pieces) continue;
        int place = (piece - rows[i] * strides.of_row) * V;
        left[i] = stream<V>(a + uint64_t(rows[i]) * strides.a + place);
        right[i] = stream<V>(b + uint64_t(rows[i]) * strides.b + place);
        upstream[i] = stream<V>(dy + uint64_t(piece) * V);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int piece = first + i * int(blockDim.x), place = (piece - rows[i] * strides.of_row) * V;
        if (piece >= pieces) continue;
        float x[V], z[V], d[V];
        widen(left[i], x);
        widen(right[i], z);
        widen(upstream[i], d);
#pragma unroll
        for (int k = 0; k < V; k++) F::gradients(x[k], z[k], d[k]);
        store(da + uint64_t(rows[i]) * strides.a + place, narrow(x));
        store(db + uint64_t(rows[i]) * strides.b + place, narrow(z));
    }
}

#define PAIRS_FORWARD(name, V, F)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) name(global<const bf16> a, global<const bf16> b, global<bf16> y, \
                                                           int pieces, int a_stride, int b_stride, int of_row) {      \
        pairs_forward<V, F>(a, b, y, pieces, {a_stride, b_stride, of_row});                                           \
    }
#define PAIRS_BACKWARD(name, V, F)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(global<const bf16> a, global<const bf16> b, global<const bf16> dy, global<bf16> da, global<bf16> db,       \
             int pieces, int a_stride, int b_stride, int of_row) {                                                      \
        pairs_backward<V, F>(a, b, dy, da, db, pieces, {a_stride, b_stride, of_row});                                   \
    }
