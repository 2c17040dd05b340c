// The sigmoid output gate: y = a ⊙ σ(g), the gate in the second half of each head of the query projection.
#include "pairs.h"

namespace {

struct Gate {
    DEVICE static float value(float a, float gate) { return a * sigmoid(gate); }
    DEVICE static void gradients(float& a, float& gate, float d) {
        float s = sigmoid(gate);
        gate = d * a * s * (1.0f - s);
        a = d * s;
    }
};

}  // namespace

PAIRS_FORWARD(sigmoid_gate_forward, 8, Gate)
KERNEL(sigmoid_gate_forward)
PAIRS_FORWARD(sigmoid_gate_forward_any, 1, Gate)
KERNEL(sigmoid_gate_forward_any)
PAIRS_BACKWARD(sigmoid_gate_backward, 8, Gate)
KERNEL(sigmoid_gate_backward)
PAIRS_BACKWARD(sigmoid_gate_backward_any, 1, Gate)
KERNEL(sigmoid_gate_backward_any)
