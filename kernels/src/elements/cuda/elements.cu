// Sums, factors and other types, value by value.
#include "elements.h"

namespace {

// y += x
struct Add {
    global<const bf16> x;
    global<bf16> y;

    template <int V> struct Taken {
        Packed<V> x, y;
    };
    template <int V> DEVICE Taken<V> take(uint64_t at) const { return {stream<V>(x + at), load<Packed<V>>(y + at)}; }
    template <int V> DEVICE void give(uint64_t at, const Taken<V>& taken) const { store(y + at, sum(taken.y, taken.x)); }
};

// y = factor x, in its place or elsewhere
struct Scale {
    global<const bf16> x;
    global<bf16> y;
    float factor;

    template <int V> using Taken = Packed<V>;
    template <int V> DEVICE Packed<V> take(uint64_t at) const { return x ? stream<V>(x + at) : load<Packed<V>>(y + at); }
    template <int V> DEVICE void give(uint64_t at, const Packed<V>& taken) const {
        float v[V];
        widen(taken, v);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] *= factor;
        store(y + at, narrow(v));
    }
};

// y = factor x in f32, in its place
struct ScaleFloats {
    global<float> y;
    float factor;

    template <int V> using Taken = Floats<V>;
    template <int V> DEVICE Floats<V> take(uint64_t at) const {
        Floats<V> taken;
        load_floats<V>(y + at, taken.values);
        return taken;
    }
    template <int V> DEVICE void give(uint64_t at, Floats<V> taken) const {
#pragma unroll
        for (int k = 0; k < V; k++) taken.values[k] *= factor;
        store_floats<V>(y + at, taken.values);
    }
};

struct ToBf16 {
    global<const float> x;
    global<bf16> y;

    template <int V> using Taken = Floats<V>;
    template <int V> DEVICE Floats<V> take(uint64_t at) const {
        Floats<V> taken;
        load_floats<V>(x + at, taken.values);
        return taken;
    }
    template <int V> DEVICE void give(uint64_t at, const Floats<V>& taken) const { store(y + at, narrow(taken.values)); }
};

struct ToFloats {
    global<const bf16> x;
    global<float> y;

    template <int V> using Taken = Packed<V>;
    template <int V> DEVICE Packed<V> take(uint64_t at) const { return stream<V>(x + at); }
    template <int V> DEVICE void give(uint64_t at, const Packed<V>& taken) const {
        float v[V];
        widen(taken, v);
        store_floats<V>(y + at, v);
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
    elements_add(global<const bf16> x, global<bf16> y, uint64_t count) {
    for_elements(Add{x, y}, count);
}
KERNEL(elements_add)

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
    elements_scale(global<const bf16> x, global<bf16> y, float factor, uint64_t count) {
    for_elements(Scale{x, y, factor}, count);
}
KERNEL(elements_scale)

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
    elements_scale_floats(global<float> y, float factor, uint64_t count) {
    for_elements(ScaleFloats{y, factor}, count);
}
KERNEL(elements_scale_floats)

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
    elements_to_bf16(global<const float> x, global<bf16> y, uint64_t count) {
    for_elements(ToBf16{x, y}, count);
}
KERNEL(elements_to_bf16)

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
    elements_to_floats(global<const bf16> x, global<float> y, uint64_t count) {
    for_elements(ToFloats{x, y}, count);
}
KERNEL(elements_to_floats)
