// Many tensors in one launch: each is cut into units of so many values, the last one shorter, and units are numbered through
// all of them. `first` has the number of each tensor's first unit, and the number of all units at its end.
#pragma once

#include "device.h"

// The tensor that a unit is of, for units that only grow.
struct TensorCursor {
    global<const uint32_t> first;
    int tensor;
    uint32_t begin, end;

    // By halves; tensors without values have no unit and are passed over.
    DEVICE void find(uint32_t unit, int tensors) {
        int low = 0, high = tensors;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (first[middle] <= unit) {
                low = middle;
            } else {
                high = middle;
            }
        }
        tensor = low;
        begin = first[low];
        end = first[low + 1];
    }

    // Whether it is another one now.
    DEVICE bool go_on(uint32_t unit) {
        if (unit < end) return false;
        while (unit >= end) {
            tensor++;
            begin = end;
            end = first[tensor + 1];
        }
        return true;
    }
};

// What tables hold of an f64.
DEVICE double as_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// Four values from `at` on, as many as there are before `count`; zeros for the others.
template <class Pointer> DEVICE void load_four(float (&to)[4], Pointer from, int at, int count, bool wide) {
    if (wide && at + 4 <= count) {
        float4 four = load<float4>(from + at);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = at + i < count ? float(from[at + i]) : 0.0f;
    }
}

DEVICE void store_four(global<float> to, const float (&from)[4], int at, int count, bool wide) {
    if (wide && at + 4 <= count) {
        store(to + at, make_float4(from[0], from[1], from[2], from[3]));
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < count) to[at + i] = from[i];
        }
    }
}
