// What is done to every value by itself, wherever it lies: as fast as a copy of as many bytes. A thread has 4 pieces of 8
// values under way. Buffers begin at multiples of 16 bytes; fewer than 8 values at the end are done one by one.
//
// An op has `Taken<V>`, `take<V>(at)`, which asks for what it needs of V values, and `give<V>(at, taken)`, which writes.
#pragma once

#include "values.h"

constexpr int ELEMENT_THREADS = 256;
constexpr int ELEMENT_PIECES = 4;

// V neighbouring values of f32.
template <int V> struct Floats {
    float values[V];
};

template <int V> DEVICE void store_floats(global<float> at, const float (&values)[V]) {
    if constexpr (V == 8) {
        store(at, make_float4(values[0], values[1], values[2], values[3]));
        store(at + 4, make_float4(values[4], values[5], values[6], values[7]));
    } else {
        at[0] = values[0];
    }
}

template <class Op> DEVICE void for_elements(const Op& op, uint64_t count) {
    uint64_t whole = count / 8;
    uint64_t first = uint64_t(blockIdx.x) * (ELEMENT_PIECES * ELEMENT_THREADS) + threadIdx.x;
    typename Op::template Taken<8> taken[ELEMENT_PIECES] = {};
#pragma unroll
    for (int i = 0; i < ELEMENT_PIECES; i++) {
        uint64_t piece = first + i * ELEMENT_THREADS;
        if (piece < whole) taken[i] = op.template take<8>(piece * 8);
    }
#pragma unroll
    for (int i = 0; i < ELEMENT_PIECES; i++) {
        uint64_t piece = first + i * ELEMENT_THREADS;
        if (piece < whole) op.template give<8>(piece * 8, taken[i]);
    }
    uint64_t last = whole * 8 + threadIdx.x;
    if (blockIdx.x == 0 && last < count) op.template give<1>(last, op.template take<1>(last));
}
