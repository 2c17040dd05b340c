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

// The pieces of a thread, the last of them left out where there are no more, unless all are there.
template <bool ALL, class Op> DEVICE void for_pieces(const Op& op, uint64_t first, uint64_t whole) {
    typename Op::template Taken<8> taken[ELEMENT_PIECES] = {};
#pragma unroll
    for (int i = 0; i < ELEMENT_PIECES; i++) {
        uint64_t piece = first + i * ELEMENT_THREADS;
        if (ALL || piece < whole) taken[i] = op.template take<8>(piece * 8);
    }
#pragma unroll
    for (int i = 0; i < ELEMENT_PIECES; i++) {
        uint64_t piece = first + i * ELEMENT_THREADS;
        if (ALL || piece < whole) op.template give<8>(piece * 8, taken[i]);
    }
}

template <class Op> DEVICE void for_elements(const Op& op, uint64_t count) {
    constexpr uint64_t OF_BLOCK = ELEMENT_PIECES * ELEMENT_THREADS;
    uint64_t whole = count / 8, begin = blockIdx.x * OF_BLOCK;
    if (begin + OF_BLOCK <= whole) {
        for_pieces<true>(op, begin + threadIdx.x, whole);
        return;
    }
    for_pieces<false>(op, begin + threadIdx.x, whole);
    // The last block has the end.
    uint64_t last = whole * 8 + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && last < count) op.template give<1>(last, op.template take<1>(last));
}
