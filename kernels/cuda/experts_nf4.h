// The weights of routed experts in NF4, decoded on their way into shared memory: operands of experts.h.
#pragma once

#include "experts.h"
#include "nf4.h"

namespace experts {

// All experts of a layer, a multiple of 256 blocks each matrix. Gate and up of an expert are beside each other, and
// `offsets` has one for each of its `matrices`.
struct InNf4 {
    global<const uint8_t> packed;
    global<const float> absmax;
    global<const uint8_t> codes;
    global<const float> nested, offsets, map;

    DEVICE InNf4(global<const bf16>, int, global<const uint8_t> packed, global<const float> absmax, global<const uint8_t> codes,
                  global<const float> nested, global<const float> offsets, global<const float> map)
        : packed(packed), absmax(absmax), codes(codes), nested(nested), offsets(offsets), map(map) {}

    DEVICE nf4::Stored with(int matrix) const {
        return {packed, absmax, codes, nested, map, codes ? float(offsets[matrix]) : 0.0f};
    }

    template <class T> DEVICE auto gate_up(const Work& work, int hidden, int width) const;
    template <class T> DEVICE auto down(const Work& work, int hidden, int width) const {
        uint32_t before = uint32_t(work.expert) * uint32_t(hidden * width / nf4::BLOCK);
        return nf4::Operand<T, T::N, true>(with(work.expert), before, hidden, width, work.column);
    }
    template <class T> DEVICE auto down_across(const Work& work, int hidden, int width) const {
        uint32_t before = uint32_t(work.expert) * uint32_t(hidden * width / nf4::BLOCK);
        return nf4::Operand<T, T::N, false>(with(work.expert), before, hidden, width, work.column);
    }
    template <class T> DEVICE auto gate_up_across(const Work& work, int hidden, int width) const;
};

// [gate ; up] along k: a thread has a row of one of them.
template <class T> struct GateUpAlong : nf4::Operand<T, T::N, true> {
    using Operand = nf4::Operand<T, T::N, true>;

    // Made of no rows, and then of one.
    DEVICE GateUpAlong(const InNf4& all, const Work& work, int hidden, int width)
        : Operand(all.with(2 * work.expert + Operand::own_row() / 8 % 2), 0, 0, hidden, 0) {
        int row = GateUp{work.column, width}(Operand::own_row());
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

    DEVICE GateUpAcross(const InNf4& all, const Work& work, int hidden, int width)
        : Operand(all.with(2 * work.expert), uint32_t(work.expert) * uint32_t(2 * width * (hidden / nf4::BLOCK)), 2 * width, hidden,
                  work.column),
          up(all.with(2 * work.expert + 1).offset),
          tiles(width / T::K) {}

    DEVICE void load(shared<bf16> to, int tile) {
        if (tile == tiles) this->stored.offset = up;
        Operand::load(to, tile);
    }
};

template <class T> DEVICE auto InNf4::gate_up(const Work& work, int hidden, int width) const {
    return GateUpAlong<T>(*this, work, hidden, width);
}
template <class T> DEVICE auto InNf4::gate_up_across(const Work& work, int hidden, int width) const {
    return GateUpAcross<T>(*this, work, hidden, width);
}

}  // namespace experts
