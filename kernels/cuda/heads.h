// Heads of bf16 in the registers of the lanes that share them: 16 lanes for a head of 128 values, 8 values each. A group of
// lanes has 2 heads at once, so that each lane asks for 4 to 6 pieces of 16 bytes before it uses the first; their sums go
// through the shuffles together, which hide each other's latency. Neighbouring groups have neighbouring heads.
//
// Heads that do not begin at multiples of 16 bytes: a whole warp for one, up to 4 single values a lane.
#pragma once

#include "values.h"

template <int V> struct Heads {
    static constexpr int COUNT = V == 8 ? 2 : 1;
    static constexpr int PIECES = V == 8 ? 1 : 4;

    int head_dim, lanes, lane;
    // The first head of the group, the distance to its next one, and where heads end.
    int first, step, end;

    DEVICE Heads(int heads, int head_dim, int lanes) : head_dim(head_dim), lanes(lanes), end(heads) {
        lane = int(threadIdx.x) & (lanes - 1);
        step = int(blockDim.x) / lanes;
        first = int(blockIdx.x) * COUNT * step + int(threadIdx.x) / lanes;
    }

    DEVICE int head(int h) const { return first + h * step; }
    // Of a lane's values in a head.
    DEVICE int place(int piece) const { return (piece * lanes + lane) * V; }
    DEVICE bool has(int h, int piece) const { return head(h) < end && place(piece) < head_dim; }
};

// A lane's part of the squares of its heads.
template <int V, int N, int PIECES> DEVICE void add_squares(const Packed<V> (&values)[N][PIECES], float (&squares)[N]) {
#pragma unroll
    for (int h = 0; h < N; h++) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            float v[V];
            widen(values[h][i], v);
#pragma unroll
            for (int k = 0; k < V; k++) squares[h] = fused(v[k], v[k], squares[h]);
        }
    }
}

#define OF_HEADS __launch_bounds__(128, 6)
