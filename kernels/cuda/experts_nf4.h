// The NF4 matrices of a layer's experts: each was quantised by itself, and they lie one behind the other.
#pragma once

#include "device.h"

namespace experts_nf4 {

constexpr int BLOCK = 64;
constexpr int NESTED_BLOCK = 256;

CONSTANT float CODE[16] = {-1.0f,
                           -0.6961928009986877f,
                           -0.5250730514526367f,
                           -0.39491748809814453f,
                           -0.28444138169288635f,
                           -0.18477343022823334f,
                           -0.09105003625154495f,
                           0.0f,
                           0.07958029955625534f,
                           0.16093020141124725f,
                           0.24611230194568634f,
                           0.33791524171829224f,
                           0.44070982933044434f,
                           0.5626170039176941f,
                           0.7229568362236023f,
                           1.0f};

// absmax of every block, or (where there is none) its code: map[code] * nested + offset.
struct Scales {
    global<const float> absmax;
    global<const uint8_t> codes;
    global<const float> nested, offsets, map;
};

// The scales of one expert, whose matrix has so many blocks.
struct ExpertScales {
    global<const float> absmax;
    global<const uint8_t> codes;
    global<const float> nested, map;
    float offset;

    DEVICE ExpertScales(const Scales& all, int expert, int blocks) : map(all.map), offset(0) {
        int64_t first = int64_t(expert) * blocks;
        if (all.absmax) {
            absmax = all.absmax + first;
        } else {
            absmax = global<const float>{};
            codes = all.codes + first;
            nested = all.nested + int64_t(expert) * ((blocks + NESTED_BLOCK - 1) / NESTED_BLOCK);
            offset = all.offsets[expert];
        }
    }

    DEVICE float of(int block) const {
        if (absmax) return absmax[block];
        return add(multiply(map[codes[block]], nested[block / NESTED_BLOCK]), offset);
    }
};

}  // namespace experts_nf4
