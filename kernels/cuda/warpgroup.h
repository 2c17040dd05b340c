// Products of a warpgroup (4 warps) of Hopper's, with both operands in shared memory: operands and what becomes of the sums are
// those of gemm.h, whose tile and loop these replace.
//
// A block is one warpgroup with M x 128 sums, M / 64 instructions of m64n128k16 for each 16 of k. They go on while its threads
// bring in what comes two tiles later: cp.async, and NF4 decoded into shared memory. For 128 x 128 x 64 the tensor cores need 512
// clocks at full rate. In that time a multiprocessor is asked for 80 % of what its ALU can do if B is decoded (some 200
// instructions for the 64 values of a thread, two clocks each), for 125 % of what shared memory can give (6 KB for each
// instruction, 16 KB copied, 16 KB stored), and for 40 bytes a clock of L2. So two blocks a multiprocessor hide each
// other's ends and barriers, and all of it together is expected at half of the full rate, where mma.sync ends at 62 % with
// nothing beside it. A tile of 64 rows or fewer is decoded all the same: there the ALU decides.
#pragma once

#include "gemm.h"

namespace warpgroup {

// BLOCKS on each multiprocessor.
template <int M_, int BLOCKS_> struct Tile {
    static constexpr int M = M_, N = 128, K = 64, STAGES = 3, THREADS = 128, BLOCKS = BLOCKS_;
    // As gemm.h takes sums apart: a warp has 16 rows of each 64, and all columns.
    static constexpr int WARPS_M = 4, WARPS_N = 1, WARPS_K = 1, WARPS = 4, WARP_M = 16, WARP_N = N, BETWEEN = 64;
    static constexpr int ROWS = M / 64, COLUMNS = N / 8;
    static constexpr int A_VALUES = M * K, B_VALUES = N * K, STAGE = A_VALUES + B_VALUES;
    static constexpr int SHARED_BYTES = STAGES * STAGE * 2;
    static_assert(M == 64 || M == 128, "the sums of more do not fit in registers");
    using Sums = float[ROWS][COLUMNS][4];

    // Rows of 64 values, as `Matrix` wants them; columns beyond the first 64 stand below those.
    template <int HEIGHT, int WIDTH> DEVICE static int place(int row, int chunk) {
        return chunk / 8 * (HEIGHT * 64) + ((row * 8 + row % 8) ^ chunk % 8) * gemm::CHUNK;
    }
    template <int WIDTH> static constexpr int EIGHT_ROWS = 8 * 64;

    template <class A, class B>
    DEVICE static void product(Sums& sum, A& a, B& b, int begin, int end, shared<bf16> stages, int rows);
};

// Has one tile of k multiplied with the first GROUPS of 64 rows.
template <class T, int GROUPS, bool ALONG_K> DEVICE void issue(typename T::Sums& sum, shared<bf16> stage) {
    constexpr int STEP_A = 16 * 2, STEP_B = ALONG_K ? 16 * 2 : 16 * 64 * 2;
    const Matrix a = Matrix::along(stage);
    shared<bf16> of_b = stage + T::A_VALUES;
    const Matrix b = ALONG_K ? Matrix::along(of_b) : Matrix::across(of_b, T::K * 64 * 2);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
#pragma unroll
        for (int step = 0; step < T::K / 16; step++) {
            wgmma_bf16<!ALONG_K>(sum[i], a.behind(i * 64 * T::K * 2 + step * STEP_A), b.behind(step * STEP_B));
        }
    }
    wgmma_commit();
}

// A tile of k of both operands on its way to its stage.
template <class T, class A, class B> DEVICE void bring(A& a, B& b, shared<bf16> stages, int stage, int tile, int end) {
    if (tile < end) {
        a.load(stages + stage * T::STAGE, tile);
        b.load(stages + stage * T::STAGE + T::A_VALUES, tile);
    }
    commit_async();
}

// The loop over tiles of k, of which the first STAGES - 1 are on their way. How many rows there are is decided before it: in a
// loop with a branch in it the compiler waits for more than it is told to.
template <class T, int GROUPS, class A, class B>
DEVICE void multiply(typename T::Sums& sum, A& a, B& b, int begin, int end, shared<bf16> stages) {
    int reading = 0, writing = T::STAGES - 1;
    for (int tile = begin; tile < end; tile++) {
        issue<T, GROUPS, B::ALONG_K>(sum, stages + reading * T::STAGE);
        // All have seen the end of the tile before, whose place is written next, and see all of the next one.
        wgmma_wait<1>();
        wait_async<T::STAGES - 3>();
        fence_async_proxy();
        sync_block();
        bring<T>(a, b, stages, writing, tile + T::STAGES - 1, end);
        reading = reading + 1 == T::STAGES ? 0 : reading + 1;
        writing = writing + 1 == T::STAGES ? 0 : writing + 1;
    }
    wgmma_wait<0>();
}

template <int M, int BLOCKS>
template <class A, class B>
DEVICE void Tile<M, BLOCKS>::product(Sums& sum, A& a, B& b, int begin, int end, shared<bf16> stages, int rows) {
    static_assert(A::ALONG_K && !A::CHANGES && !B::CHANGES, "operands are multiplied as they lie");
    if (begin >= end) return;
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; stage++) bring<Tile>(a, b, stages, stage, begin + stage, end);
    wait_async<STAGES - 2>();
    fence_async_proxy();
    sync_block();
    if (rows > 64) multiply<Tile, ROWS>(sum, a, b, begin, end, stages);
    else multiply<Tile, 1>(sum, a, b, begin, end, stages);
}

}  // namespace warpgroup
