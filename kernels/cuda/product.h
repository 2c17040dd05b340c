// What products of whole matrices share: their operands, and what becomes of their sums.
#pragma once

#include "dropout.h"
#include "gemm.h"

namespace gemm {

// Two operands and their k. Addresses and strides are multiples of 16 bytes.
struct Pair {
    global<const bf16> a, b;
    int k, stride_a, stride_b;
};

// An operand of all rows of a matrix that has `outer` of them beside `k`; the block begins with number `first`.
template <bool ALONG_K, class T, int OUTER>
DEVICE auto operand(global<const bf16> values, int stride, int outer, int k, int first) {
    if constexpr (ALONG_K) return AlongK<T, OUTER>(values, stride, k, EveryRow{outer}, first);
    else return AcrossK<T, OUTER>(values, stride, outer, EveryRow{k}, first);
}

// The same, for an operand of few tiles: nothing of it is kept in registers between them.
template <bool ALONG, class T, int OUTER> struct Few {
    static constexpr bool ALONG_K = ALONG, CHANGES = false;
    global<const bf16> values;
    int stride, outer, k, first;

    DEVICE void load(shared<bf16> to, int tile) const {
        operand<ALONG, T, OUTER>(values, stride, outer, k, here(first)).load(to, tile);
    }
};

// Drops sums by the index that they have in a matrix of m x n; the block begins at this row and column. Fragments below the matrix are
// left out, and for another reason, too: with a branch before each, the compiler draws for one after the other, in few registers.
template <class T>
DEVICE void drop(float (&sum)[T::ROWS][T::COLUMNS][4], const Dropout& dropout, int row, int column, int m, int n) {
    static_assert(T::WARPS_K == 1, "every warp has sums");
    uint32_t width = uint32_t(here(n));
    uint64_t first = uint64_t(here(row)) * width + uint64_t(column);
    auto draw = [&](int i, int j, float& x, float& y) {
        uint64_t index = first + uint32_t(i) * width + uint32_t(j);
        if (!dropout.keeps(index)) x = 0;
        if (!dropout.keeps(index + 1)) y = 0;
    };
    const Part<T> part;
#pragma unroll
    for (int i = 0; i < T::ROWS; i++) {
        int begin = part.first_row + T::BETWEEN * i;
        if (row + begin < m) each_pair_of<T>(sum[i], begin, part.first_column, draw);
    }
}

// The product of two pairs of operands one behind the other along k. With DROPS the sums of the first are dropped; it is a loop
// of its own then: in the middle of one, the mask would cost registers.
template <bool DROPS, class T, class A1, class B1, class A2, class B2>
DEVICE void joined(float (&sum)[T::ROWS][T::COLUMNS][4], A1& a1, B1& b1, int tiles1, A2& a2, B2& b2, int tiles2,
                   shared<bf16> stages, const Dropout& dropout, int row, int column, int m, int n) {
    if constexpr (DROPS) {
        product<T>(sum, a1, b1, 0, tiles1, stages);
        drop<T>(sum, dropout, row, column, m, n);
        sync_block();
        product<T>(sum, a2, b2, 0, tiles2, stages);
    } else {
        Joined<A1, A2> a{a1, tiles1, a2};
        Joined<B1, B2> b{b1, tiles1, b2};
        product<T>(sum, a, b, 0, tiles1 + tiles2, stages);
    }
}

// Where sums go: bf16 or f32, whichever is there. `together`: two neighbours may be written at once, since `stride` is even and
// so is the address.
struct Out {
    global<bf16> narrow;
    global<float> wide;
    global<const float> bias;
    int stride;
    float alpha;
    int accumulate, together;
};

// Writes the sums of a block that begins at a row and a column of m x n.
template <class T> DEVICE void finish(float (&sum)[T::ROWS][T::COLUMNS][4], const Out& out, int row, int column, int m, int n) {
    each_pair<T>(sum, [&](int i, int j, float x, float y) {
        int r = row + i, c = column + j;
        if (r >= m || c >= n) return;
        bool both = c + 1 < n;
        x *= out.alpha;
        y *= out.alpha;
        if (out.bias) {
            x += out.bias[c];
            if (both) y += out.bias[c + 1];
        }
        int64_t at = int64_t(r) * out.stride + c;
        if (out.narrow) {
            if (out.together && both) {
                if (out.accumulate) {
                    uint32_t old = load<uint32_t>(out.narrow + at);
                    x += low(old);
                    y += high(old);
                }
                store(out.narrow + at, pack(x, y));
                return;
            }
            out.narrow[at] = to_bf16(out.accumulate ? x + to_float(out.narrow[at]) : x);
            if (both) out.narrow[at + 1] = to_bf16(out.accumulate ? y + to_float(out.narrow[at + 1]) : y);
        } else {
            if (out.together && both) {
                if (out.accumulate) {
                    float2 old = load<float2>(out.wide + at);
                    x += old.x;
                    y += old.y;
                }
                store(out.wide + at, make_float2(x, y));
                return;
            }
            out.wide[at] = out.accumulate ? x + out.wide[at] : x;
            if (both) out.wide[at + 1] = out.accumulate ? y + out.wide[at + 1] : y;
        }
    });
}

}  // namespace gemm
