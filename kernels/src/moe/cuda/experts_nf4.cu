// The products of routed experts whose weights are NF4, decoded on their way into shared memory.
//
// A block decodes every weight once for 128 rows (or 64): 3.3 instructions a value beside 128 multiply-adds of it, half of
// what a multiprocessor can issue beside tensor cores at full rate, while the other of its two blocks computes. Weights come
// in as 4.1 bits, half a byte a value where a bf16 copy of all experts moves 4.5 (2.5 to make it, 2 to read it again): with 40
// rows an expert, tiles of 64 by 128 ask for 2 bytes a clock and multiprocessor, a fifth of what an A100 can give.
#include "experts_nf4.h"

namespace {

using Large = gemm::Tile<128, 128, 64, 2, 2, 2>;
using Small = gemm::Tile<64, 128, 64, 2, 2, 3>;

}  // namespace

EXPERTS_GATE_UP(moe_nf4_gate_up_large, Large, experts::InNf4)
KERNEL(moe_nf4_gate_up_large)
EXPERTS_GATE_UP(moe_nf4_gate_up_small, Small, experts::InNf4)
KERNEL(moe_nf4_gate_up_small)
EXPERTS_DOWN(moe_nf4_down_large, Large, experts::InNf4)
KERNEL(moe_nf4_down_large)
EXPERTS_DOWN(moe_nf4_down_small, Small, experts::InNf4)
KERNEL(moe_nf4_down_small)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_large, Large, experts::InNf4, false)
KERNEL(moe_nf4_down_backward_large)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_small, Small, experts::InNf4, false)
KERNEL(moe_nf4_down_backward_small)
EXPERTS_GATE_UP_BACKWARD(moe_nf4_gate_up_backward_large, Large, experts::InNf4, false)
KERNEL(moe_nf4_gate_up_backward_large)
EXPERTS_GATE_UP_BACKWARD(moe_nf4_gate_up_backward_small, Small, experts::InNf4, false)
KERNEL(moe_nf4_gate_up_backward_small)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_drop_large, Large, experts::InNf4, true)
KERNEL(moe_nf4_down_backward_drop_large)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_drop_small, Small, experts::InNf4, true)
KERNEL(moe_nf4_down_backward_drop_small)
