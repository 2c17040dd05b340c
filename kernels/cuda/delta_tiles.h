// What the kernels of the gated delta rule share: tiles of bf16 in shared memory, and how products read them.
//
// A tile is stored as [rows][WIDTH]. Its pieces of 16 bytes change places within a row so that the eight rows that one
// ldmatrix reads lie in different banks: both eight rows in a row, and the eight "spread" rows 0, 1, 8, 9, 16, 17, 24, 25
// (+ 2 j). Of a product whose columns are spread, a thread holds 8 columns in a row over the four products j = 0..3 of 8
// columns each, so that it stores 16 bytes at once.
#pragma once

#include "device.h"

namespace delta {

constexpr int CHUNK = 64;
// Above this, softplus is the identity.
constexpr float SOFTPLUS_LINEAR = 20.0f;
// A token's log decay is at least this, of which exp is 0 already: sums stay so small that their differences mean something.
constexpr float FORGOTTEN = -128.0f;
// Added to a sum of squares before its root.
constexpr float EPSILON = 1e-6f;
// In the table of chunks: there is no state, since a document begins or ends here.
constexpr uint32_t NO_STATE = 0xffffffffu;
// Of the factors of a token in a value head, with E = exp(G), G the sum of log decays in the chunk up to the token,
// 1/|q| and 1/|k| of the raw rows: two sets of four, of which a kernel reads one.
constexpr int READ = 0;    // E key_dim^(-1/2) / |q|
constexpr int RECALL = 1;  // E / |k|
constexpr int KEEP = 2;    // exp(G_C - G) / |k|
constexpr int BETA = 3;    // beta, in the set for walks
constexpr int SUM = 3;     // G, in the set for gradients
constexpr int FACTORS = 4;
enum Set { FOR_WALKS, FOR_GRADIENTS, SETS };

// Where a value of a tile is.
template <int WIDTH> DEVICE int place(int row, int column) {
    constexpr int PIECES = WIDTH / 8;
    static_assert(PIECES == 4 || PIECES % 8 == 0, "rows of 32 values, or of 64 and more");
    int piece = column >> 3;
    if constexpr (PIECES == 4) {
        piece ^= (row >> 1) & 3;
    } else {
        piece ^= (row ^ ((row >> 2) & 6)) & 7;
    }
    return row * WIDTH + piece * 8 + (column & 7);
}

// A thread in its warp: where its values stand in fragments, and which row of which matrix it names for ldmatrix.
struct Lane {
    int number, group, place, matrix, row;

    DEVICE Lane() : number(threadIdx.x % 32), group(number / 4), place(number % 4), matrix(number / 8), row(number % 8) {}
    // Row `row` of the spread rows of product j of four.
    DEVICE int spread(int j) const { return 8 * (row / 2) + 2 * j + row % 2; }
};

// Left operand, 16 x 16 at (m, k) of a tile [m][k].
template <int WIDTH> DEVICE void left(uint32_t (&a)[4], shared<bf16> tile, const Lane& lane, int m, int k) {
    load_matrix(a, tile + place<WIDTH>(m + (lane.matrix % 2) * 8 + lane.row, k + (lane.matrix / 2) * 8));
}
// Left operand, 16 x 16 at (m, k), of a tile [k][m].
template <int WIDTH> DEVICE void left_transposed(uint32_t (&a)[4], shared<bf16> tile, const Lane& lane, int m, int k) {
    load_matrix_transposed(a, tile + place<WIDTH>(k + (lane.matrix / 2) * 8 + lane.row, m + (lane.matrix % 2) * 8));
}
// Right operands of two products, 16 x 8 each at (k, n) and (k, n + 8), of a tile [n][k].
template <int WIDTH> DEVICE void right(uint32_t (&b)[4], shared<bf16> tile, const Lane& lane, int k, int n) {
    load_matrix(b, tile + place<WIDTH>(n + (lane.matrix / 2) * 8 + lane.row, k + (lane.matrix % 2) * 8));
}
// The same with spread columns: products j and j + 1 of the 32 columns from n.
template <int WIDTH> DEVICE void right_spread(uint32_t (&b)[4], shared<bf16> tile, const Lane& lane, int k, int n, int j) {
    load_matrix(b, tile + place<WIDTH>(n + lane.spread(j + lane.matrix / 2), k + (lane.matrix % 2) * 8));
}
// Right operands of two products at (k, n) and (k, n + 8) of a tile [k][n].
template <int WIDTH> DEVICE void right_transposed(uint32_t (&b)[4], shared<bf16> tile, const Lane& lane, int k, int n) {
    load_matrix_transposed(b, tile + place<WIDTH>(k + (lane.matrix % 2) * 8 + lane.row, n + (lane.matrix / 2) * 8));
}

DEVICE void two_products(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_bf16(d0, a, first);
    mma_bf16(d1, a, second);
}

// Two results of 16 x 8 side by side as a left operand of 16 x 16.
DEVICE void as_left(uint32_t (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
    a[0] = pack(d0[0], d0[1]);
    a[1] = pack(d0[2], d0[3]);
    a[2] = pack(d1[0], d1[1]);
    a[3] = pack(d1[2], d1[3]);
}

template <int N> DEVICE void clear(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) d[n][i] = 0.0f;
    }
}

// Begins to copy ROWS rows of a tile, from row `first` on; beyond `rows` (of them) and `columns` it is 0.
template <int ROWS, int WIDTH, class Source>
DEVICE void load_tile(shared<bf16> tile, Source from, int64_t stride, int rows, int columns, int thread, int threads,
                      int first = 0) {
    constexpr int PIECES = WIDTH / 8;
    // Unrolled, the addresses of all pieces of all tiles are kept in registers through a kernel's loop.
#pragma unroll 1
    for (int at = thread; at < ROWS * PIECES; at += threads) {
        int row = at / PIECES, column = at % PIECES * 8;
        bool there = row < rows && column < columns;
        copy_async(tile + place<WIDTH>(first + row, column), there ? from + (row * stride + column) : from, there ? 16 : 0);
    }
}

// Begins to copy a set of factors of a chunk's tokens; those of tokens that are not there are 0.
DEVICE void load_factors(shared<float> to, global<const float> from, Set set, int64_t first, int rows, int heads, int head,
                         int thread) {
    if (thread >= CHUNK) return;
    bool there = thread < rows;
    int64_t at = (((first + (there ? thread : 0)) * heads + head) * SETS + set) * FACTORS;
    copy_async(to + thread * FACTORS, from + at, there ? 16 : 0);
}

// 1/|q| or 1/|k| of a row of a tile.
template <int DK> DEVICE float inverse_length(shared<bf16> tile, int row) {
    float sum = 0.0f;
#pragma unroll 4
    for (int column = 0; column < DK; column += 8) {
        uint4 eight = load<uint4>(tile + place<DK>(row, column));
        const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int i = 0; i < 4; i++) sum += low(pairs[i]) * low(pairs[i]) + high(pairs[i]) * high(pairs[i]);
    }
    return 1.0f / sqrtf(sum + EPSILON);
}

DEVICE float log_decay(float rate, float x) {
    const float softplus = x > SOFTPLUS_LINEAR ? x : log1pf(expf(x));
    return fmaxf(-rate * softplus, FORGOTTEN);
}

// exp(G_C) of a whole chunk, from the factors of its last token.
DEVICE float whole_decay(shared<float> factors) {
    shared<float> last = factors + (CHUNK - 1) * FACTORS;
    return last[RECALL] / last[KEEP];
}

}  // namespace delta
