// A token's router logits in a warp: lane l holds those of experts l, l + 32, ..., so a row is read once, in whole lines, and
// stays in registers.
#pragma once

#include "device.h"

namespace router {

// Warps of a block of 256.
constexpr int WARPS = 8;

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = max(value, shuffle_xor(value, mask));
    return value;
}

// softmax over one row: `values` become exp(logit - top), the sum of which is given.
template <int EACH> struct Row {
    float values[EACH];
    float top, sum;

    DEVICE Row(global<const float> logits, int experts, int lane) {
        top = -INFINITY;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int expert = lane + 32 * i;
            values[i] = expert < experts ? float(logits[expert]) : -INFINITY;
            top = max(top, values[i]);
        }
        top = warp_max(top);
    }

    DEVICE void exponentiate() {
        float all = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            values[i] = expf(values[i] - top);
            all += values[i];
        }
        sum = warp_sum(all);
    }
};

}  // namespace router
