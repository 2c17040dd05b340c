// A row of bf16 in the registers of WARPS warps: it is read once and written once, whatever is summed over it in between.
// Each lane has up to 4 pieces of V values, all of them asked for before the first is used: with 2 warps for a row of 2048
// values, and 64 registers, 128 KB are under way on a multiprocessor where 25 KB hide the latency of an H200's memory. One
// warp with 8 pieces needs no barrier, but twice the registers; the barrier is for 4 warps only, and others fill the gap.
#pragma once

#include "values.h"

constexpr int PIECES = 4;

template <int V, int WARPS> struct Row {
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int BLOCK_WARPS = WARPS > 4 ? WARPS : 4;

    int row;
    // 0 for threads that have no row.
    int width;
    int lane;
    uint64_t first;

    DEVICE Row(int rows, int row_width) {
        row = int(blockIdx.x) * (BLOCK_WARPS / WARPS) + int(threadIdx.x) / THREADS;
        width = row < rows ? row_width : 0;
        lane = int(threadIdx.x) % THREADS;
        first = uint64_t(row) * row_width;
    }

    DEVICE int place(int piece) const { return (piece * THREADS + lane) * V; }
    DEVICE bool has(int piece) const { return place(piece) < width; }

    // Zeros behind the end.
    DEVICE void read(global<const bf16> from, Packed<V> (&pieces)[PIECES]) const { read_at(from + first, pieces); }
    // A row that begins elsewhere.
    DEVICE void read_at(global<const bf16> begin, Packed<V> (&pieces)[PIECES]) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++) pieces[i] = has(i) ? stream<V>(begin + place(i)) : Packed<V>{};
    }
    // From where this launch writes.
    DEVICE void read_own(global<bf16> from, Packed<V> (&pieces)[PIECES]) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++) pieces[i] = has(i) ? load<Packed<V>>(from + first + place(i)) : Packed<V>{};
    }
    DEVICE void write(global<bf16> to, const Packed<V> (&pieces)[PIECES]) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (has(i)) store(to + first + place(i), pieces[i]);
        }
    }

    // Once in a kernel, by all threads of the block: sums of the lanes, then of the warps, in their order.
    template <int N> DEVICE void sum_over(float (&sums)[N]) const {
        sum_over_lanes(sums);
        if constexpr (WARPS > 1) {
            SHARED(float, partial, BLOCK_WARPS * N);
            int warp = threadIdx.x / 32;
            if (threadIdx.x % 32 == 0) {
#pragma unroll
                for (int n = 0; n < N; n++) partial[warp * N + n] = sums[n];
            }
            sync_block();
            int leader = warp / WARPS * WARPS;
#pragma unroll
            for (int n = 0; n < N; n++) {
                sums[n] = 0;
                for (int w = 0; w < WARPS; w++) sums[n] += partial[(leader + w) * N + n];
            }
        }
    }
};

// Rows of up to 2048 and of up to 8192 values that begin at multiples of 16 bytes, and of up to 4096 values anywhere.
#define SHORT_ROWS __launch_bounds__(128, 6)
#define LONG_ROWS __launch_bounds__(256, 3)
#define ANY_ROWS __launch_bounds__(1024)
