// The products of routed experts on Hopper, by its warpgroups' instruction: the same as those of experts.cu and experts_nf4.cu,
// which say what they compute, with other tiles and another loop (warpgroup.h says why these, and what to expect).
//
// Tiles of 64 rows have half the tensor cores' work for each value that is decoded, so the ALU bounds them: three blocks a
// multiprocessor keep it busy. Without decoding there is nothing for a third to do.
#include "experts_nf4.h"
#include "warpgroup.h"

ONLY_FOR(90a)

namespace {

using Large = warpgroup::Tile<128, 2>;
using Small = warpgroup::Tile<64, 2>;
using SmallNf4 = warpgroup::Tile<64, 3>;

}  // namespace

EXPERTS_GATE_UP(moe_warpgroup_gate_up_large, Large, experts::InBf16)
KERNEL(moe_warpgroup_gate_up_large)
EXPERTS_GATE_UP(moe_warpgroup_gate_up_small, Small, experts::InBf16)
KERNEL(moe_warpgroup_gate_up_small)
EXPERTS_DOWN(moe_warpgroup_down_large, Large, experts::InBf16)
KERNEL(moe_warpgroup_down_large)
EXPERTS_DOWN(moe_warpgroup_down_small, Small, experts::InBf16)
KERNEL(moe_warpgroup_down_small)
EXPERTS_DOWN_BACKWARD(moe_warpgroup_down_backward_large, Large, experts::InBf16, false)
KERNEL(moe_warpgroup_down_backward_large)
EXPERTS_DOWN_BACKWARD(moe_warpgroup_down_backward_small, Small, experts::InBf16, false)
KERNEL(moe_warpgroup_down_backward_small)
EXPERTS_GATE_UP_BACKWARD(moe_warpgroup_gate_up_backward_large, Large, experts::InBf16, false)
KERNEL(moe_warpgroup_gate_up_backward_large)
EXPERTS_GATE_UP_BACKWARD(moe_warpgroup_gate_up_backward_small, Small, experts::InBf16, false)
KERNEL(moe_warpgroup_gate_up_backward_small)

EXPERTS_GATE_UP(moe_warpgroup_nf4_gate_up_large, Large, experts::InNf4)
KERNEL(moe_warpgroup_nf4_gate_up_large)
EXPERTS_GATE_UP(moe_warpgroup_nf4_gate_up_small, SmallNf4, experts::InNf4)
KERNEL(moe_warpgroup_nf4_gate_up_small)
EXPERTS_DOWN(moe_warpgroup_nf4_down_large, Large, experts::InNf4)
KERNEL(moe_warpgroup_nf4_down_large)
EXPERTS_DOWN(moe_warpgroup_nf4_down_small, SmallNf4, experts::InNf4)
KERNEL(moe_warpgroup_nf4_down_small)
EXPERTS_DOWN_BACKWARD(moe_warpgroup_nf4_down_backward_large, Large, experts::InNf4, false)
KERNEL(moe_warpgroup_nf4_down_backward_large)
EXPERTS_DOWN_BACKWARD(moe_warpgroup_nf4_down_backward_small, SmallNf4, experts::InNf4, false)
KERNEL(moe_warpgroup_nf4_down_backward_small)
EXPERTS_GATE_UP_BACKWARD(moe_warpgroup_nf4_gate_up_backward_large, Large, experts::InNf4, false)
KERNEL(moe_warpgroup_nf4_gate_up_backward_large)
EXPERTS_GATE_UP_BACKWARD(moe_warpgroup_nf4_gate_up_backward_small, SmallNf4, experts::InNf4, false)
KERNEL(moe_warpgroup_nf4_gate_up_backward_small)
