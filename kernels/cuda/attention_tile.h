// Tiles of bf16 in shared memory, and products of warps with them.
//
// A row of a tile is cut into pieces of 16 bytes, and piece c of row r stands where c ^ r would: whatever 8 rows of 8x8
// values ldmatrix asks for, and whatever fragments a warp stores, lie in different banks without any padding.
#pragma once

#include "device.h"

constexpr int WARP = 32;

// Taken from one lane, so that the compiler sees that a warp has it once.
DEVICE int same_for_warp(int value) { return shuffle(value, 0); }
DEVICE int warp_of_thread() { return same_for_warp(int(threadIdx.x) / WARP); }

// With what the pieces of a row are exchanged. Rows of 64 bytes share 128 bytes of banks by two.
template <int WIDTH> DEVICE int turn(int row) {
    static_assert(WIDTH == 32 || WIDTH % 64 == 0, "rows of 64 bytes, or of whole 128 bytes");
    return WIDTH == 32 ? (row / 2) & 3 : row & 7;
}

// Where piece `piece` of a row begins.
template <int WIDTH> DEVICE int place(int row, int piece) { return row * WIDTH + (piece ^ turn<WIDTH>(row)) * 8; }

// What a lane reads of each 16 x 16 values: its row and its piece among the first ones; `at` moves by constants only. What a
// warp has of the columns begins at a multiple of how many it has.
template <int WIDTH> struct Reader {
    int row, mix;

    DEVICE Reader(int first, int piece) : row(first * WIDTH), mix(piece ^ turn<WIDTH>(first)) {}

    // `rows` and `columns` are multiples of 16.
    DEVICE int at(int rows, int columns) const {
        int piece = columns / 8;
        return row + rows * WIDTH + ((mix ^ (piece & 7)) + (piece & ~7)) * 8;
    }
};

// Fragments A of rows; and fragments B where the tile has one row for each value that is summed over (transposed).
template <int WIDTH> DEVICE Reader<WIDTH> row_reader(int first, int column = 0) {
    int lane = lane_index();
    return {first + lane % 16, column / 8 + lane / 16};
}

// Fragments B where the tile has one row for each column of the product.
template <int WIDTH> DEVICE Reader<WIDTH> column_reader(int first) {
    int lane = lane_index();
    return {first + lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

template <int M, int N> DEVICE void clear(float (&sums)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] = 0;
        }
    }
}

template <int M, int N> DEVICE void scale_all(float (&sums)[M][N][4], float by) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] *= by;
        }
    }
}

// A 16 columns deep with 16 columns of B, for all rows.
template <int M, int N> DEVICE void multiply_two(float (&sums)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[4], int n) {
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
    for (int m = 0; m < M; m++) {
        mma_bf16(sums[m][n], a[m], first);
        mma_bf16(sums[m][n + 1], a[m], second);
    }
}

// sums += A Bt: 16 M rows of `a` with 8 N rows of `b`, over DEPTH columns of both.
template <int DEPTH, int M, int N>
DEVICE void multiply_rows(float (&sums)[M][N][4], shared<bf16> a, Reader<DEPTH> of_a, shared<bf16> b, Reader<DEPTH> of_b) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t rows[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrix(rows[m], a + of_a.at(16 * m, k));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t columns[4];
            load_matrix(columns, b + of_b.at(8 * n, k));
            multiply_two(sums, rows, columns, n);
        }
    }
}

// sums += A B: A is what another product left in the same lanes, rounded, over 8 N rows of `b` and 8 D of its columns.
template <int WIDTH, int M, int N, int D>
DEVICE void multiply_weights(float (&sums)[M][D][4], const float (&a)[M][N][4], shared<bf16> b, Reader<WIDTH> of_b) {
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t rows[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) rows[m][i] = pack(a[m][k + i / 2][i % 2 * 2], a[m][k + i / 2][i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int d = 0; d < D; d += 2) {
            uint32_t columns[4];
            load_matrix_transposed(columns, b + of_b.at(8 * k, 8 * d));
            multiply_two(sums, rows, columns, d);
        }
    }
}

// sums += A B: 16 M rows of `a`, over DEPTH rows of `b` and 8 N of its columns, which begin at column `first`.
template <int DEPTH, int WIDTH, int M, int N>
DEVICE void multiply_columns(float (&sums)[M][N][4], shared<bf16> a, Reader<DEPTH> of_a, shared<bf16> b, Reader<WIDTH> of_b) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t rows[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrix(rows[m], a + of_a.at(16 * m, k));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t columns[4];
            load_matrix_transposed(columns, b + of_b.at(k, 8 * n));
            multiply_two(sums, rows, columns, n);
        }
    }
}

// Deltas of a head: whole blocks of rows of any size, so that nobody asks which of them there are.
DEVICE int delta_rows(int tokens) { return (tokens + 127) / 128 * 128; }

// One head of a matrix [tokens, heads * width].
template <class T> struct Head {
    global<T> first;
    int tokens, stride, width;

    DEVICE Head(global<T> matrix, int tokens, int heads, int head, int width)
        : first(matrix + head * width), tokens(tokens), stride(heads * width), width(width) {}

    // The host sees to it that 31 bits are enough.
    DEVICE global<T> at(int token, int column) const { return first + (token * stride + column); }
};

// Begins to copy rows into a tile; what the matrix does not have becomes 0. A thread copies one piece of every STEP-th row, so
// that all of its places differ by constants.
template <int WIDTH, int ROWS, int THREADS> DEVICE void copy_rows(shared<bf16> tile, const Head<const bf16>& from, int token) {
    constexpr int PIECES = WIDTH / 8, STEP = THREADS / PIECES;
    static_assert(ROWS % STEP == 0, "all threads copy as much");
    int row = int(threadIdx.x) / PIECES, piece = int(threadIdx.x) % PIECES;
    int mix = piece ^ turn<WIDTH>(row);
    int rows = piece * 8 < from.width ? from.tokens - token : 0;
    int offset = (token + row) * from.stride + piece * 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
        copy_async(tile + ((row + i) * WIDTH + (mix ^ turn<WIDTH>(i)) * 8), from.first + offset, row + i < rows ? 16 : 0);
        offset += STEP * from.stride;
    }
}

// Rounds a warp's values and lays them down in a tile, whose rows `row` and following and whose columns from `column` on they
// are.
template <int WIDTH, int M, int N> DEVICE void store_tile(shared<bf16> tile, int row, int column, const float (&values)[M][N][4]) {
    int lane = lane_index(), group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int at = place<WIDTH>(row + 16 * m + 8 * i + group, column / 8 + n) + pair;
                store(tile + at, pack(values[m][n][2 * i], values[m][n][2 * i + 1]));
            }
        }
    }
}

// Rows of a tile, by `threads` threads of which this is number `thread`, 16 bytes at a time.
template <int WIDTH>
DEVICE void write_rows(const Head<bf16>& to, int token, int rows, shared<const bf16> tile, int row, int thread, int threads) {
    constexpr int PIECES = WIDTH / 8;
    for (int number = thread; number < rows * PIECES; number += threads) {
        int line = number / PIECES, piece = number % PIECES;
        if (token + line < to.tokens && piece * 8 < to.width) {
            store(to.at(token + line, piece * 8), load<uint4>(tile + place<WIDTH>(row + line, piece)));
        }
    }
}

// Removes what a query does not see: keys behind it, and those of documents before or after. Rows are queries, and `edges` where
// their documents begin; or rows are keys, and `edges` where their documents end. All count from the block's first row on; the
// scores begin at `row` and `column`.
template <bool KEYS_ARE_ROWS, int M, int N>
DEVICE void hide(float (&scores)[M][N][4], shared<const int> edges, int row, int column) {
    int lane = lane_index(), group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int own = row + 16 * m + 8 * i + group, edge = edges[own];
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int at = column + 8 * n + pair + j;
                    bool hidden = KEYS_ARE_ROWS ? at < own || at >= edge : at < edge || at > own;
                    if (hidden) scores[m][n][2 * i + j] = -INFINITY;
                }
            }
        }
    }
}
