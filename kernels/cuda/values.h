// Neighbouring values at once: 8 of bf16 in 16 bytes, or 1 where rows do not begin at multiples of 16 bytes. Whatever is
// written for V values is right for both.
#pragma once

#include "device.h"

template <int V> struct Packed;
template <> struct alignas(16) Packed<8> {
    uint32_t pairs[4];
};
template <> struct Packed<1> {
    bf16 one;
};

DEVICE void widen(const Packed<8>& packed, float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = low(packed.pairs[i]);
        values[2 * i + 1] = high(packed.pairs[i]);
    }
}
DEVICE void widen(const Packed<1>& packed, float (&values)[1]) { values[0] = to_float(packed.one); }

template <int V> DEVICE Packed<V> narrow(const float (&values)[V]) {
    Packed<V> packed;
    if constexpr (V == 8) {
#pragma unroll
        for (int i = 0; i < 4; i++) packed.pairs[i] = pack(values[2 * i], values[2 * i + 1]);
    } else {
        packed.one = to_bf16(values[0]);
    }
    return packed;
}

// x + y, rounded.
template <int V> DEVICE Packed<V> sum(const Packed<V>& x, const Packed<V>& y) {
    float left[V], right[V];
    widen(x, left);
    widen(y, right);
#pragma unroll
    for (int k = 0; k < V; k++) left[k] += right[k];
    return narrow(left);
}

// Of memory that this launch does not write; what streams by leaves the cache to what is read again.
template <int V> DEVICE Packed<V> stream(global<const bf16> at) {
    if constexpr (V == 8) {
        return load_once<Packed<8>>(at);
    } else {
        return load<Packed<1>>(at);
    }
}

template <int V> DEVICE void load_floats(global<const float> at, float (&values)[V]) {
    if constexpr (V == 8) {
        float4 first = load<float4>(at), second = load<float4>(at + 4);
        values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
        values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
    } else {
        values[0] = at[0];
    }
}

// 1 / (1 + e^-x). The exponential of a far negative x is infinite, and its reciprocal 0.
DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp2(-LOG2_E * x)); }

// d (x σ(x)) / dx, s = σ(x)
DEVICE float silu_slope(float x, float s) { return s * fused(x, 1.0f - s, 1.0f); }

// Sums over `lanes` neighbouring lanes, a power of two: all of them get the same bits.
template <int N> DEVICE void sum_over_lanes(float (&sums)[N], int lanes = 32) {
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int n = 0; n < N; n++) sums[n] += shuffle_xor(sums[n], apart);
    }
}
