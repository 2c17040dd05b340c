// Dropout's mask, a function of a key and an element's index: `Dropout` of the host's dropout.rs. What is kept is not scaled
// here; whoever uses the mask has 1 / (1 - probability) in a factor of a whole product.
#pragma once

#include "device.h"

struct Dropout {
    // What is drawn below it is dropped; 0: nothing is.
    uint32_t threshold;
    uint64_t key;

    DEVICE bool keeps(uint64_t index) const {
        uint32_t first = mixed(uint32_t(index) ^ uint32_t(key));
        return mixed((first + uint32_t(key >> 32)) ^ uint32_t(index >> 32)) >= threshold;
    }

    DEVICE static uint32_t mixed(uint32_t x) {
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        return x ^ (x >> 16);
    }
};

// What is kept of a pair of bf16.
DEVICE uint32_t kept(uint32_t pair, bool low, bool high) { return pair & ((low ? 0xffffu : 0) | (high ? 0xffff0000u : 0)); }
