// The products of routed experts whose weights are NF4, decoded on their way into shared memory.
//
// A block decodes every weight once for 128 rows (or 64): 3.3 instructions a value beside 128 multiply-adds of it, half of
// what a multiprocessor can issue beside tensor cores at full rate, while the other of its two blocks computes. Weights come
// in as 4.1 bits, half a byte a value where a bf16 copy of all experts moves 4.5 (2.5 to make it, 2 to read it again): with 40
// rows an expert, tiles of 64 by 128 ask for 2 bytes a clock and multiprocessor, a fifth of what an A100 can give.
#include "experts.h"
#include "nf4.h"

namespace {

using Large = gemm::Tile<128, 128, 64, 2, 2, 2>;
using Small = gemm::Tile<64, 128, 64, 2, 2, 3>;

// All experts of a layer, a multiple of 256 blocks each matrix. Gate and up of an expert are beside each other, and
// `offsets` has one for each of its `matrices`.
struct Stored {
    global<const uint8_t> packed;
    global<const float> absmax;
    global<const uint8_t> codes;
    global<const float> nested, offsets, map;

    DEVICE Stored(global<const bf16>, int, global<const uint8_t> packed, global<const float> absmax, global<const uint8_t> codes,
                  global<const float> nested, global<const float> offsets, global<const float> map)
        : packed(packed), absmax(absmax), codes(codes), nested(nested), offsets(offsets), map(map) {}

    DEVICE nf4::Stored with(int matrix) const {
        return {packed, absmax, codes, nested, map, codes ? float(offsets[matrix]) : 0.0f};
    }

    template <class T> DEVICE auto gate_up(const experts::Work& work, int hidden, int width) const;
    template <class T> DEVICE auto down(const experts::Work& work, int hidden, int width) const {
        uint32_t before = uint32_t(work.expert) * uint32_t(hidden * width / nf4::BLOCK);
        return nf4::Operand<T, T::N, true>(with(work.expert), before, hidden, width, work.column);
    }
    template <class T> DEVICE auto down_across(const experts::Work& work, int hidden, int width) const {
        uint32_t before = uint32_t(work.expert) * uint32_t(hidden * width / nf4::BLOCK);
        return nf4::Operand<T, T::N, false>(with(work.expert), before, hidden, width, work.column);
    }
    template <class T> DEVICE auto gate_up_across(const experts::Work& work, int hidden, int width) const;
};

// [gate ; up] along k: a thread has a row of one of them.
template <class T> struct GateUpAlong : nf4::Operand<T, T::N, true> {
    using Operand = nf4::Operand<T, T::N, true>;

    // Made of no rows, and then of one.
    DEVICE GateUpAlong(const Stored& all, const experts::Work& work, int hidden, int width)
        : Operand(all.with(2 * work.expert + Operand::own_row() / 8 % 2), 0, 0, hidden, 0) {
        int row = experts::GateUp{work.column, width}(Operand::own_row());
        if (row < 0) return;
        this->block = (uint32_t(work.expert) * uint32_t(2 * width) + uint32_t(row)) * this->width +
                      uint32_t(Operand::own_column()) / nf4::BLOCK;
        this->limit = hidden;
        this->fetch();
    }
};

// [gate ; up] across k: gate's rows, then up's.
template <class T> struct GateUpAcross : nf4::Operand<T, T::N, false> {
    using Operand = nf4::Operand<T, T::N, false>;
    float up;
    int tiles;

    DEVICE GateUpAcross(const Stored& all, const experts::Work& work, int hidden, int width)
        : Operand(all.with(2 * work.expert), uint32_t(work.expert) * uint32_t(2 * width * (hidden / nf4::BLOCK)), 2 * width, hidden,
                  work.column),
          up(all.with(2 * work.expert + 1).offset),
          tiles(width / T::K) {}

    DEVICE void load(shared<bf16> to, int tile) {
        if (tile == tiles) this->stored.offset = up;
        Operand::load(to, tile);
    }
};

template <class T> DEVICE auto Stored::gate_up(const experts::Work& work, int hidden, int width) const {
    return GateUpAlong<T>(*this, work, hidden, width);
}
template <class T> DEVICE auto Stored::gate_up_across(const experts::Work& work, int hidden, int width) const {
    return GateUpAcross<T>(*this, work, hidden, width);
}

}  // namespace

EXPERTS_GATE_UP(moe_nf4_gate_up_large, Large, Stored)
KERNEL(moe_nf4_gate_up_large)
EXPERTS_GATE_UP(moe_nf4_gate_up_small, Small, Stored)
KERNEL(moe_nf4_gate_up_small)
EXPERTS_DOWN(moe_nf4_down_large, Large, Stored)
KERNEL(moe_nf4_down_large)
EXPERTS_DOWN(moe_nf4_down_small, Small, Stored)
KERNEL(moe_nf4_down_small)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_large, Large, Stored, false)
KERNEL(moe_nf4_down_backward_large)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_small, Small, Stored, false)
KERNEL(moe_nf4_down_backward_small)
EXPERTS_GATE_UP_BACKWARD(moe_nf4_gate_up_backward_large, Large, Stored, false)
KERNEL(moe_nf4_gate_up_backward_large)
EXPERTS_GATE_UP_BACKWARD(moe_nf4_gate_up_backward_small, Small, Stored, false)
KERNEL(moe_nf4_gate_up_backward_small)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_drop_large, Large, Stored, true)
KERNEL(moe_nf4_down_backward_drop_large)
EXPERTS_DOWN_BACKWARD(moe_nf4_down_backward_drop_small, Small, Stored, true)
KERNEL(moe_nf4_down_backward_drop_small)
