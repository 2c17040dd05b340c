// Dropout: y = x or 0, kept values scaled; or y += that. Whether an element is kept is a hash of the key and its index, so
// nothing is stored. A value takes some 25 instructions, most of them the hash: for an H200 nearly as long as its bytes are
// under way, for cards with less bandwidth half of it.
#include "dropout.h"
#include "elements.h"

namespace {

struct Masked {
    global<const bf16> x;
    global<bf16> y;
    Dropout dropout;
    uint64_t first_index;
    float scale;
    bool add_to_y;

    template <int V> struct Taken {
        Packed<V> x, y;
    };
    template <int V> DEVICE Taken<V> take(uint64_t at) const {
        Taken<V> taken = {};
        taken.x = x ? stream<V>(x + at) : load<Packed<V>>(y + at);
        if (add_to_y) taken.y = load<Packed<V>>(y + at);
        return taken;
    }
    template <int V> DEVICE void give(uint64_t at, const Taken<V>& taken) const {
        float v[V], before[V];
        widen(taken.x, v);
        widen(taken.y, before);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = before[k] + (dropout.keeps(first_index + at + k) ? multiply(v[k], scale) : 0.0f);
        store(y + at, narrow(v));
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
    dropout_apply(global<const bf16> x, global<bf16> y, uint64_t count, uint64_t first_index, uint64_t key,
                  uint32_t threshold, float scale, int add_to_y) {
    for_elements(Masked{x, y, {threshold, key}, first_index, scale, add_to_y != 0}, count);
}
KERNEL(dropout_apply)
