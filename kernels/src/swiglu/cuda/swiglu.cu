// The gated activation: y = silu(g) ⊙ u, in buffers of their own or side by side in one.
#include "pairs.h"

namespace {

struct SwiGlu {
    DEVICE static float value(float gate, float up) { return gate * sigmoid(gate) * up; }
    DEVICE static void gradients(float& gate, float& up, float d) {
        float s = sigmoid(gate), silu = gate * s;
        gate = d * up * silu_slope(gate, s);
        up = d * silu;
    }
};

}  // namespace

PAIRS_FORWARD(swiglu_forward, 8, SwiGlu)
KERNEL(swiglu_forward)
PAIRS_FORWARD(swiglu_forward_any, 1, SwiGlu)
KERNEL(swiglu_forward_any)
PAIRS_BACKWARD(swiglu_backward, 8, SwiGlu)
KERNEL(swiglu_backward)
PAIRS_BACKWARD(swiglu_backward_any, 1, SwiGlu)
KERNEL(swiglu_backward_any)
