// Products of many experts in one launch: which tile of rows a block computes, and where its operands are.
//
// The rows of all tokens' choices are sorted by expert; a list on the device names expert and first row of every tile of up to
// 128 rows, or 64 (an expert without rows has none), so that a launch needs no number from it. A persistent block goes through
// (tile, columns) pairs, columns innermost: blocks that run at the same time share rows out of L2, and the tiles of an expert
// follow each other and share its weights. Tiles of experts with few rows are as many as those with many: no block waits long.
#pragma once

#include "dropout.h"
#include "gemm.h"

namespace grouped {

using gemm::CHUNK;

// The tiles of some experts.
struct Schedule {
    global<const uint32_t> slots, offsets, tiles, tile_offsets;
    int first_expert, last_expert, per_token;
};

// Rows first .. first + rows of `expert`; columns from `column` on.
struct Work {
    int expert, first, rows, column;
};

// Calls `body` for each piece of work of this block. `widest` columns and ROWS rows at a time.
template <int ROWS, class Body> DEVICE void each_tile(const Schedule& schedule, int columns, int widest, const Body& body) {
    int first = int(schedule.tile_offsets[schedule.first_expert]);
    int count = int(schedule.tile_offsets[schedule.last_expert]) - first;
    int pieces = (columns + widest - 1) / widest;
    for (int item = int(blockIdx.x); item < count * pieces; item += int(gridDim.x)) {
        uint2 tile = load<uint2>(schedule.tiles + 2 * (first + item / pieces));
        int end = int(schedule.offsets[tile.x + 1]);
        body(Work{int(tile.x), int(tile.y), min(ROWS, end - int(tile.y)), item % pieces * widest});
        sync_block();
    }
}

// === where rows are ===

// Sorted rows themselves.
struct Sorted {
    int first, count;

    DEVICE int operator()(int row) const { return row < count ? first + row : -1; }
};

// The tokens of sorted rows; where there are no slots, the rows themselves.
struct Tokens {
    global<const uint32_t> slots;
    int per_token, first, count;

    DEVICE int operator()(int row) const {
        if (row >= count) return -1;
        return slots ? int(slots[first + row]) / per_token : first + row;
    }
};

// Rows of [gate ; up], 8 of one and 8 of the other in turn, so that both of a column come to the same thread.
struct GateUp {
    int first, width;

    DEVICE int operator()(int column) const {
        int at = first + column / 16 * 8 + column % 8;
        return at >= width ? -1 : column / 8 % 2 == 0 ? at : width + at;
    }
};

// === operands that are read once or twice, and so keep nothing in registers (`here`) ===

// [rows, k], k next to each other.
template <class T, int OUTER> struct Narrow {
    static constexpr bool ALONG_K = true, CHANGES = false;
    static constexpr int CHUNKS = T::K / CHUNK;
    global<const bf16> values;
    int stride, k, rows;

    DEVICE void load(shared<bf16> to, int tile) const {
        for (int i = here(int(threadIdx.x)); i < OUTER * CHUNKS; i += T::THREADS) {
            int row = i / CHUNKS, chunk = i % CHUNKS, column = tile * T::K + chunk * CHUNK;
            bool there = row < rows && column < k;
            copy_async(to + T::template place<OUTER, T::K>(row, chunk), values + (there ? row * stride + column : 0), there ? 16 : 0);
        }
    }
};

// [k, columns], columns next to each other, beginning with `first`.
template <class T, int OUTER> struct Across {
    static constexpr bool ALONG_K = false, CHANGES = false;
    static constexpr int CHUNKS = OUTER / CHUNK;
    global<const bf16> values;
    int k, columns, first;

    DEVICE void load(shared<bf16> to, int tile) const {
        for (int i = here(int(threadIdx.x)); i < T::K * CHUNKS; i += T::THREADS) {
            int row = i / CHUNKS, chunk = i % CHUNKS, column = first + chunk * CHUNK, at = tile * T::K + row;
            bool there = at < k && column < columns;
            copy_async(to + T::template place<T::K, OUTER>(row, chunk), values + (there ? at * columns + column : 0), there ? 16 : 0);
        }
    }
};

// B of the updates of gate and up beside each other: k is the rank of gate, then that of up; gate's columns have zeros for
// the latter, and up's for the former.
template <class T, int OUTER> struct GateUpUpdate {
    static constexpr bool ALONG_K = true, CHANGES = false;
    static constexpr int CHUNKS = T::K / CHUNK;
    global<const bf16> gate, up;
    int gate_rank, up_rank, first, width;

    DEVICE void load(shared<bf16> to, int tile) const {
        for (int i = here(int(threadIdx.x)); i < OUTER * CHUNKS; i += T::THREADS) {
            int row = i / CHUNKS, chunk = i % CHUNKS, k = tile * T::K + chunk * CHUNK;
            int column = first + row / 16 * 8 + row % 8;
            bool of_gate = row / 8 % 2 == 0;
            int own = of_gate ? k : k - gate_rank, rank = of_gate ? gate_rank : up_rank;
            bool there = column < width && own >= 0 && own < rank;
            global<const bf16> from = of_gate ? gate : up;
            copy_async(to + T::template place<OUTER, T::K>(row, chunk), from + (there ? column * rank + own : 0), there ? 16 : 0);
        }
    }
};

// An operand whose rows (of A, along k) are dropped by slot and column. What is kept is not scaled.
template <class Inner> struct DroppedRows : Inner {
    static constexpr bool CHANGES = true;
    Dropout dropout;
    global<const uint32_t> slots;
    int first, count, width;

    DEVICE DroppedRows(const Inner& inner, const Dropout& dropout, global<const uint32_t> slots, int first, int count, int width)
        : Inner(inner), dropout(dropout), slots(slots), first(first), count(count), width(width) {}

    DEVICE uint32_t changed(uint32_t pair, int row, int k) const {
        if (row >= count) return pair;
        uint64_t index = uint64_t(slots[first + row]) * uint64_t(width) + uint64_t(k);
        return pair & ((dropout.keeps(index) ? 0xffffu : 0) | (dropout.keeps(index + 1) ? 0xffff0000u : 0));
    }
};

// An operand whose k (of A, across) are rows that are dropped by slot and column.
template <class Inner> struct DroppedAcross : Inner {
    static constexpr bool CHANGES = true;
    Dropout dropout;
    global<const uint32_t> slots;
    int first, count, column, width;

    DEVICE DroppedAcross(const Inner& inner, const Dropout& dropout, global<const uint32_t> slots, int first, int count,
                         int column, int width)
        : Inner(inner), dropout(dropout), slots(slots), first(first), count(count), column(column), width(width) {}

    DEVICE bool keeps(int outer, int k) const {
        if (k >= count) return false;
        return dropout.keeps(uint64_t(slots[first + k]) * uint64_t(width) + uint64_t(column + outer));
    }

    DEVICE uint32_t changed(uint32_t pair, int outer, int k) const {
        return pair & ((keeps(outer, k) ? 0xffffu : 0) | (keeps(outer, k + 1) ? 0xffff0000u : 0));
    }
};

// The product with its first `before` tiles dropped by slot and column (and scaled), where there is a dropout.
template <bool DROPS, class T, class A, class B>
DEVICE void product(float (&sum)[T::ROWS][T::COLUMNS][4], A& a, B& b, int before, int tiles, const Dropout& dropout, float scale,
                    global<const uint32_t> slots, const Work& work, int width, shared<bf16> stages) {
    bool apart = DROPS && dropout.threshold != 0 && before > 0;
    int begin = 0, end = apart ? before : tiles;
    while (true) {
        T::product(sum, a, b, begin, end, stages, work.rows);
        if (!DROPS || !apart) return;
        gemm::each_pair<T>(sum, [&](int row, int column, float& x, float& y) {
            if (row >= work.rows) return;
            uint64_t index = uint64_t(slots[work.first + row]) * uint64_t(width) + uint64_t(work.column + column);
            x = dropout.keeps(index) ? x * scale : 0.0f;
            y = dropout.keeps(index + 1) ? y * scale : 0.0f;
        });
        sync_block();
        apart = false;
        begin = end;
        end = tiles;
    }
}

DEVICE float sigmoid(float x) { return quotient(1.0f, 1.0f + fast_exp(-x)); }

}  // namespace grouped
