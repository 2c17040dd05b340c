// Products on tensor cores, in parts that kernels are put together from: sum[m, n] = Σk A[m, k] B[k, n], bf16 in, f32 sums.
//
//   Tile<M, N, K, WARPS_M, WARPS_N, STAGES>   what a block computes, and K columns of both operands at a time
//   AlongK<T, M or N>, AcrossK<T, M or N>     bring an operand's part of a tile into shared memory; `Source` says where its
//                                             rows are (EveryRow, ListedRows, or anything that maps a row to one or to -1)
//   Joined<First, Second>                     two operands one behind the other along k: [A1 | A2] [B1 ; B2]
//   product<T>(sum, a, b, begin, end, stages) the loop over tiles of k
//   each_pair<T>(sum, store)                  calls store(row, column, x, y) for all sums, two neighbours of a row at a time
//   placed(...)                               which tile a block computes, so that blocks at work share operands in L2
//
// Why this shape: a warp of 64 x 64 sums reads 8 pieces of shared memory for 32 mma, half of what shared memory can give
// beside tensor cores at full rate; its 128 sums, 64 fragments and the rest stay under 255 registers, so that two blocks of
// 4 warps share a multiprocessor and one computes while the other waits at its barrier (one for each K). cp.async runs
// STAGES - 1 tiles ahead. Chunks of 16 bytes are swapped within a row by its number, so that neither the copies nor
// ldmatrix (8 rows at one column) meet in a bank.
//
// An operand is what `product` takes as `a` or `b`:
//   static constexpr bool ALONG_K      in shared memory a row is one m (or n) and k runs along it; else a row is one k
//   static constexpr bool CHANGES      changed(pair, outer, k) is applied to what comes from shared memory
//   void load(shared<bf16> to, int tile)       called by all threads for tile after tile in their order
//   uint32_t changed(uint32_t pair, int outer, int k)     values k and k + 1 of row (column of B) `outer` of the block
// with to[swizzled<COLUMNS>(row, chunk)] the place of 8 values.
#pragma once

#include "device.h"

namespace gemm {

// Values that one cp.async moves.
constexpr int CHUNK = 8;

// Where 8 values lie in a tile with rows of COLUMNS values: rows that ldmatrix reads together are in different banks.
template <int COLUMNS> DEVICE int swizzled(int row, int chunk) {
    constexpr int CHUNKS = COLUMNS / CHUNK;
    static_assert(CHUNKS == 2 || CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 32, 64 or a multiple of 128 bytes");
    if constexpr (CHUNKS == 2) return row * COLUMNS + (chunk ^ (row >> 2 & 1)) * CHUNK;
    else if constexpr (CHUNKS == 4) return row * COLUMNS + (chunk ^ (row >> 1 & 3)) * CHUNK;
    else return row * COLUMNS + (chunk ^ (row & 7)) * CHUNK;
}

// WARPS_K > 1 shares the steps of a tile out among warps that compute the same sums, for tiles with few of them; the first of
// these warps has the result.
template <int M_, int N_, int K_, int WARPS_M_, int WARPS_N_, int STAGES_, int WARPS_K_ = 1> struct Tile {
    static constexpr int M = M_, N = N_, K = K_, STAGES = STAGES_;
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, WARPS_K = WARPS_K_;
    static constexpr int WARPS = WARPS_M * WARPS_N, THREADS = 32 * WARPS * WARPS_K;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
    // Fragments of 16 rows and of 8 columns.
    static constexpr int ROWS = WARP_M / 16, COLUMNS = WARP_N / 8;
    // Rows from one fragment of a warp to its next.
    static constexpr int BETWEEN = 16;
    static constexpr int STEPS = K / 16 / WARPS_K;
    // The columns are computed in two halves where there are enough of them: half of B's fragments are in registers then.
    static constexpr int HALVES = COLUMNS % 4 == 0 ? 2 : 1, PAIRS = COLUMNS / 2 / HALVES;
    // Values of a stage, and bytes of all: what a launch has to give as DYNAMIC_SHARED.
    static constexpr int A_VALUES = M * K, B_VALUES = N * K;
    static constexpr int SHARED_BYTES = STAGES * (A_VALUES + B_VALUES) * 2;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp computes whole fragments, two columns of them at a time");
    static_assert(STEPS >= 2 && STEPS % 2 == 0, "a step is read while the one before is computed");
    static_assert(STAGES >= 2, "a tile is copied while the one before is computed");
    using Sums = float[ROWS][COLUMNS][4];

    // Where 8 values of an operand of HEIGHT rows of WIDTH values lie, and values from one row to that 8 below.
    template <int HEIGHT, int WIDTH> DEVICE static int place(int row, int chunk) { return swizzled<WIDTH>(row, chunk); }
    template <int WIDTH> static constexpr int EIGHT_ROWS = 8 * WIDTH;

    // Blocks of a multiprocessor that grouped products are compiled for.
    static constexpr int BLOCKS = 2;
    // The loop of grouped products, by whichever kind of tile; `rows` of it are there.
    template <class A, class B>
    DEVICE static void product(Sums& sum, A& a, B& b, int begin, int end, shared<bf16> stages, int rows);
};

// === where rows are ===

// All rows of a matrix.
struct EveryRow {
    int count;

    DEVICE int operator()(int row) const { return row < count ? row : -1; }
};

// Those that a list names; a negative one is a row of zeros.
struct ListedRows {
    global<const int> list;
    int count;

    DEVICE int operator()(int row) const { return row < count ? list[row] : -1; }
};

// === operands ===

// How the threads of a block share out a piece of ROWS x COLUMNS values: each has one column of chunks, in every so many rows.
template <class T, int ROWS, int COLUMNS> struct Shares {
    static constexpr int CHUNKS = COLUMNS / CHUNK, BETWEEN = T::THREADS / CHUNKS;
    static constexpr int EACH = (ROWS + BETWEEN - 1) / BETWEEN;
    static constexpr bool ALL = ROWS % BETWEEN == 0;
    static_assert(T::THREADS % CHUNKS == 0 && BETWEEN % 8 == 0, "rows of a thread are swizzled alike");

    DEVICE static int chunk() { return int(threadIdx.x) % CHUNKS; }
    DEVICE static int row(int i) { return int(threadIdx.x) / CHUNKS + i * BETWEEN; }
    DEVICE static bool has(int i) { return ALL || row(i) < ROWS; }
    DEVICE static shared<bf16> place(shared<bf16> to) { return to + T::template place<ROWS, COLUMNS>(row(0), chunk()); }
    // From one row of a thread to its next.
    static constexpr int STEP = BETWEEN / 8 * T::template EIGHT_ROWS<COLUMNS>;
};

// The chunk that begins so many chunks behind an address.
DEVICE global<const bf16> behind(global<const bf16> at, uint32_t chunks) { return as<const bf16>(as<const uint4>(at) + int64_t(chunks)); }

// [outer, k], k next to each other: `x` of x Wᵀ, and `W` of it. `values` and `stride` (values from row to row) are multiples
// of 16 bytes, the matrix has less than 64 GiB. Rows are read in whole chunks: where k is no multiple of 8, what follows up
// to the next one is 0.
template <class T, int OUTER, class Source = EveryRow> struct AlongK {
    static constexpr bool ALONG_K = true, CHANGES = false;
    using Own = Shares<T, OUTER, T::K>;
    global<const bf16> values;
    int left;
    // Bytes from row to row; one bit for each row that is there, and which rows of the source they are.
    uint32_t stride, there;
    uint32_t rows[Own::EACH];

    // `first`: row of the source that the block begins with.
    DEVICE AlongK(global<const bf16> values, int stride, int k, const Source& source, int first)
        : values(values), left(k - Own::chunk() * CHUNK), stride(uint32_t(stride) * 2), there(0) {
#pragma unroll
        for (int i = 0; i < Own::EACH; i++) {
            int from = Own::has(i) ? source(first + Own::row(i)) : -1;
            there |= uint32_t(from >= 0) << i;
            rows[i] = from < 0 ? 0 : uint32_t(from);
        }
    }

    DEVICE void load(shared<bf16> to, int tile) const {
        shared<bf16> place = Own::place(to);
        auto from = as<const uint8_t>(values + int64_t(tile) * T::K + Own::chunk() * CHUNK);
        uint32_t now = left > tile * T::K ? there : 0;
        // One product and sum gives an address, in which the ALU has no part; made before the loop it would take two registers.
        uint32_t between = uint32_t(here(int(stride)));
#pragma unroll
        for (int i = 0; i < Own::EACH; i++) {
            global<const uint8_t> at = from + int64_t(uint64_t(rows[i]) * between);
            if (Own::has(i)) copy_async_if(place + i * Own::STEP, as<const bf16>(at), now & 1u << i);
        }
    }
};

// [k, outer]: `W` of dy W, both of dyᵀ x. `values` and `stride` as above. Of a row's last chunk all is read.
template <class T, int OUTER, class Source = EveryRow> struct AcrossK {
    static constexpr bool ALONG_K = false, CHANGES = false;
    using Own = Shares<T, T::K, OUTER>;
    global<const bf16> values;
    uint32_t stride;
    bool there;
    Source source;

    // `columns` of the matrix, of which the block begins with `first`; `source` has the rows, which are k.
    DEVICE AcrossK(global<const bf16> values, int stride, int columns, const Source& source, int first)
        : values(values + first), stride(uint32_t(stride) / CHUNK), there(first + Own::chunk() * CHUNK < columns), source(source) {}

    DEVICE void load(shared<bf16> to, int tile) const {
        shared<bf16> place = Own::place(to);
#pragma unroll
        for (int i = 0; i < Own::EACH; i++) {
            if (!Own::has(i)) continue;
            int from = source(tile * T::K + Own::row(i));
            copy_async_if(place + i * Own::STEP, behind(values, uint32_t(from) * stride + uint32_t(Own::chunk())), uint32_t(there && from >= 0));
        }
    }
};

// The first operand for so many tiles, the second from then on.
template <class First, class Second> struct Joined {
    static constexpr bool ALONG_K = First::ALONG_K, CHANGES = false;
    static_assert(First::ALONG_K == Second::ALONG_K && !First::CHANGES && !Second::CHANGES, "both lie the same way");
    First first;
    int tiles;
    Second second;

    DEVICE void load(shared<bf16> to, int tile) {
        if (tile < tiles) first.load(to, tile);
        else second.load(to, tile - tiles);
    }
};

// === the loop ===

// What a thread is among those of its block.
template <class T> struct Part {
    int first_row, first_column, of_k;

    DEVICE Part() {
        int warp = int(threadIdx.x) / 32;
        // What the compiler cannot see: it is 0 where warps share no k.
        of_k = T::WARPS_K == 1 ? 0 : warp / T::WARPS;
        first_row = warp % T::WARPS / T::WARPS_N * T::WARP_M;
        first_column = warp % T::WARPS_N * T::WARP_N;
    }
};

// Rows of A of one step: 16 rows by 16 k each.
template <class T, class A> DEVICE void read_a(uint32_t (&to)[T::ROWS][4], const A& a, shared<bf16> tile, int first, int step, int k) {
    int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < T::ROWS; i++) {
        int row = first + 16 * i;
        if constexpr (A::ALONG_K) load_matrix(to[i], tile + swizzled<T::K>(row + lane % 16, 2 * step + lane / 16));
        else load_matrix_transposed(to[i], tile + swizzled<T::M>(16 * step + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
        if constexpr (A::CHANGES) {
#pragma unroll
            for (int r = 0; r < 4; r++) to[i][r] = a.changed(to[i][r], row + lane / 4 + r % 2 * 8, k + lane % 4 * 2 + r / 2 * 8);
        }
    }
}

// Columns of B of half a step: 16 k by 16 columns each, two fragments.
template <class T, class B>
DEVICE void read_b(uint32_t (&to)[T::PAIRS][4], const B& b, shared<bf16> tile, int first, int step, int k) {
    int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int j = 0; j < T::PAIRS; j++) {
        int column = first + 16 * j;
        if constexpr (B::ALONG_K) load_matrix(to[j], tile + swizzled<T::K>(column + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
        else load_matrix_transposed(to[j], tile + swizzled<T::N>(16 * step + lane % 16, column / 8 + lane / 16));
        if constexpr (B::CHANGES) {
#pragma unroll
            for (int r = 0; r < 4; r++) to[j][r] = b.changed(to[j][r], column + lane / 4 + r / 2 * 8, k + lane % 4 * 2 + r % 2 * 8);
        }
    }
}

// Adds the warps' shares of k, in their order.
template <class T> DEVICE void add_shares(float (&sum)[T::ROWS][T::COLUMNS][4], shared<bf16> stages) {
    constexpr int VALUES = T::ROWS * T::COLUMNS * 4, SHARE = T::WARPS * 32 * VALUES;
    static_assert((T::WARPS_K - 1) * SHARE * 4 <= T::SHARED_BYTES, "the shares fit in where the operands were");
    int own = int(threadIdx.x) % (T::WARPS * 32), of_k = int(threadIdx.x) / (T::WARPS * 32);
    shared<float> shares = as<float>(stages);
    wait_async<0>();
    sync_block();
#pragma unroll
    for (int v = 0; v < VALUES; v++) {
        if (of_k > 0) shares[(of_k - 1) * SHARE + v * T::WARPS * 32 + own] = sum[v / 4 / T::COLUMNS][v / 4 % T::COLUMNS][v % 4];
    }
    sync_block();
    if (of_k > 0) return;
    for (int share = 0; share < T::WARPS_K - 1; share++) {
#pragma unroll
        for (int v = 0; v < VALUES; v++) {
            sum[v / 4 / T::COLUMNS][v / 4 % T::COLUMNS][v % 4] += shares[share * SHARE + v * T::WARPS * 32 + own];
        }
    }
}

// Adds the product of tiles `begin..end` of A and B to the sums. All threads of the block take part; `stages` may be used
// again after a `sync_block`.
template <class T, class A, class B>
DEVICE void product(float (&sum)[T::ROWS][T::COLUMNS][4], A& a, B& b, int begin, int end, shared<bf16> stages) {
    constexpr int STAGE = T::A_VALUES + T::B_VALUES;
    const Part<T> part;
    uint32_t a_fragments[2][T::ROWS][4], b_fragments[2][T::PAIRS][4];
    auto next_a = [&](int into, int stage, int tile, int step) {
        int own = step * T::WARPS_K + part.of_k;
        read_a<T>(a_fragments[into], a, stages + stage * STAGE, part.first_row, own, tile * T::K + own * 16);
    };
    auto next_b = [&](int into, int stage, int tile, int step, int half) {
        int own = step * T::WARPS_K + part.of_k, column = part.first_column + half * T::PAIRS * 16;
        read_b<T>(b_fragments[into], b, stages + stage * STAGE + T::A_VALUES, column, own, tile * T::K + own * 16);
    };
    if (begin >= end) return;
#pragma unroll
    for (int stage = 0; stage < T::STAGES - 1; stage++) {
        if (begin + stage < end) {
            a.load(stages + stage * STAGE, begin + stage);
            b.load(stages + stage * STAGE + T::A_VALUES, begin + stage);
        }
        commit_async();
    }
    wait_async<T::STAGES - 2>();
    sync_block();
    next_a(0, 0, begin, 0);
    next_b(0, 0, begin, 0, 0);
    int reading = 0, writing = T::STAGES - 1;
    for (int tile = begin; tile < end; tile++) {
#pragma unroll
        for (int step = 0; step < T::STEPS; step++) {
#pragma unroll
            for (int half = 0; half < T::HALVES; half++) {
                int turn = step * T::HALVES + half;
                if (half < T::HALVES - 1) {
                    next_b((turn + 1) % 2, reading, tile, step, half + 1);
                } else {
                    int next = tile;
                    if (step == T::STEPS - 1) {
                        // All have read the last of this tile and see all of the next. Behind the last it is read once more.
                        wait_async<T::STAGES - 2>();
                        sync_block();
                        next = tile + 1 < end ? tile + 1 : tile;
                        reading = next == tile ? reading : reading + 1 == T::STAGES ? 0 : reading + 1;
                    }
                    next_a((step + 1) % 2, reading, next, (step + 1) % T::STEPS);
                    next_b((turn + 1) % 2, reading, next, (step + 1) % T::STEPS, 0);
                }
                if (turn == 0) {
                    if (tile + T::STAGES - 1 < end) {
                        a.load(stages + writing * STAGE, tile + T::STAGES - 1);
                        b.load(stages + writing * STAGE + T::A_VALUES, tile + T::STAGES - 1);
                        writing = writing + 1 == T::STAGES ? 0 : writing + 1;
                    }
                    commit_async();
                }
#pragma unroll
                for (int i = 0; i < T::ROWS; i++) {
#pragma unroll
                    for (int j = 0; j < 2 * T::PAIRS; j++) {
                        const uint32_t(&columns)[4] = b_fragments[turn % 2][j / 2];
                        uint32_t pair[2] = {columns[j % 2 * 2], columns[j % 2 * 2 + 1]};
                        mma_bf16(sum[i][half * 2 * T::PAIRS + j], a_fragments[step % 2][i], pair);
                    }
                }
            }
        }
    }
    if constexpr (T::WARPS_K > 1) add_shares<T>(sum, stages);
}

template <int M, int N, int K, int WARPS_M, int WARPS_N, int STAGES, int WARPS_K>
template <class A, class B>
DEVICE void Tile<M, N, K, WARPS_M, WARPS_N, STAGES, WARPS_K>::product(Sums& sum, A& a, B& b, int begin, int end,
                                                                      shared<bf16> stages, int) {
    gemm::product<Tile>(sum, a, b, begin, end, stages);
}

template <class T> DEVICE void clear(float (&sum)[T::ROWS][T::COLUMNS][4]) {
#pragma unroll
    for (int i = 0; i < T::ROWS; i++) {
#pragma unroll
        for (int j = 0; j < T::COLUMNS; j++) {
#pragma unroll
            for (int v = 0; v < 4; v++) sum[i][j][v] = 0;
        }
    }
}

// === what becomes of the sums ===

// Calls `store(row, column, x, y)`, counted from the block's first row and column; x stands in `column`, which is even, and y
// in the next one. `store` may change x and y. Here for the sums of fragments that begin at a row and a column.
template <class T, class Store> DEVICE void each_pair_of(float (&sum)[T::COLUMNS][4], int row, int column, const Store& store) {
    int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int j = 0; j < T::COLUMNS; j++) {
            store(row + 8 * half + lane / 4, column + 8 * j + lane % 4 * 2, sum[j][2 * half], sum[j][2 * half + 1]);
        }
    }
}

// The same for all sums.
template <class T, class Store> DEVICE void each_pair(float (&sum)[T::ROWS][T::COLUMNS][4], const Store& store) {
    const Part<T> part;
    if (T::WARPS_K > 1 && part.of_k > 0) return;
#pragma unroll
    for (int i = 0; i < T::ROWS; i++) each_pair_of<T>(sum[i], part.first_row + T::BETWEEN * i, part.first_column, store);
}

// === which tile ===

struct Place {
    int row, column;
};

// Tile number `index` of rows x columns of them. Blocks with neighbouring numbers run at the same time: 8 rows of tiles are
// gone through column by column, so that some 100 blocks need 8 parts of A and a dozen of B.
DEVICE Place placed(int index, int rows, int columns) {
    constexpr int GROUP = 8;
    int group = index / (GROUP * columns), within = index - group * GROUP * columns;
    int high = min(GROUP, rows - group * GROUP);
    return {group * GROUP + within % high, within / high};
}

}  // namespace gemm
