// The gradient of the state from the last chunk of a document to the first, and the gradient of the values, for one value
// head and W of its columns; dS is the gradient of the state after a chunk:
//   dN = P^T dO + (exp(G_C - G) K) dS      dV = beta (dN + U^T dN)
//   dS <- exp(G_C) dS + (E Q)^T dO - (E K)^T dV
// It leaves dS of every chunk but the last of a document (where it is 0) for delta_gradients, which makes everything else of
// it, in parallel.
//
// As in delta_forward, a warp has 16 columns of the values and half of the keys of dS^T in registers, and all is transposed:
// results are left operands where they stand. K dS and P^T dO are made in halves, added through shared memory; 126 mma of a
// warp's are in a row for each chunk, 232 if one warp did all. dV^T goes out through shared memory, 16 bytes a thread.
// 94 KB at W = 32, of which one block fits everywhere; 122 KB at W = 64. At 8k tokens 38 GFLOP, 0.4 GB of reads that mostly
// hit L2, and 0.2 GB of writes: 0.15 ms of an H200 are expected.
#include "delta_walk.h"

namespace {

using namespace delta;

template <int W> constexpr int THREADS = 32 * STATE_WARPS<W>;

// A block's own memory.
template <int DK, int W> struct Tiles : WalkTiles<DK, W> {
    shared<bf16> outputs, values;

    DEVICE explicit Tiles(shared<bf16> memory) : WalkTiles<DK, W>(memory) {
        outputs = this->own;
        values = outputs + 2 * CHUNK * W;
    }
    DEVICE shared<bf16> outputs_of(int chunk) const { return outputs + chunk % 2 * (CHUNK * W); }
};

struct Sources : WalkSources {
    global<const bf16> outputs;
};

// Half of dS^T, and what a warp does with it; the part is dN^T or dV^T.
template <int DK, int W> struct Walker : HalfState<DK, W> {
    using Half = HalfState<DK, W>;
    using Half::column, Half::half, Half::HALF, Half::part, Half::state, Half::warp;

    DEVICE explicit Walker(int warp) : Half(warp) {}

    DEVICE void save_state(const Lane& lane, const Walk& where, global<bf16> to) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = where.column + column + lane.group + 8 * i;
#pragma unroll
            for (int n = 0; n < HALF / 8; n++) {
                int key = half * HALF + 8 * n + 2 * lane.place;
                if (row < where.dv && key < where.dk) {
                    store(to + (int64_t(row) * where.dk + key), pack(state[n][2 * i], state[n][2 * i + 1]));
                }
            }
        }
    }

    // This half's part of dN^T: its keys of dS^T K^T, and of dO^T P the tokens that make both halves equally long.
    DEVICE void written_part(const Tiles<DK, W>& tiles, const Lane& lane, int chunk, bool last) {
        clear(part);
        if (!last) {
            this->multiply_keys(tiles.k_of(chunk), lane);
            shared<float> factors = tiles.factors_of(chunk) + (2 * lane.place * FACTORS + KEEP);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float keep[2] = {factors[8 * n * FACTORS], factors[(8 * n + 1) * FACTORS]};
#pragma unroll
                for (int i = 0; i < 4; i++) part[n][i] *= keep[i % 2];
            }
        }
#pragma unroll
        for (int step = 0; step < 4; step++) {
            if ((step == 1 || step == 2) != (half == 1)) continue;
            uint32_t a[4], b[4];
            left_transposed<W>(a, tiles.outputs_of(chunk), lane, column, 16 * step);
#pragma unroll
            for (int n = 0; n <= step; n++) {
                right_transposed<CHUNK>(b, tiles.weights, lane, 16 * step, 16 * n);
                two_products(part[2 * n], part[2 * n + 1], a, b);
            }
        }
        this->give_part(tiles.exchange, lane);
    }

    // dV^T, which both halves compute, and half of it into shared memory. dN is rounded wherever it goes, as X is on the way
    // forward and for the same reason.
    DEVICE void solve(const Tiles<DK, W>& tiles, const Lane& lane, int chunk) {
        this->take_part(tiles.exchange, lane);
        uint32_t written[4][4];
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) written[n / 2][n % 2 * 2 + i] = round_pair(part[n][2 * i], part[n][2 * i + 1]);
        }
#pragma unroll
        for (int step = 0; step < 4; step++) {
#pragma unroll
            for (int n = 0; n <= step; n++) {
                uint32_t b[4];
                right_transposed<CHUNK>(b, tiles.solution, lane, 16 * step, 16 * n);
                two_products(part[2 * n], part[2 * n + 1], written[step], b);
            }
        }
        shared<float> betas = tiles.factors_of(chunk) + (2 * lane.place * FACTORS + BETA);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float beta[2] = {betas[8 * n * FACTORS], betas[(8 * n + 1) * FACTORS]};
#pragma unroll
            for (int i = 0; i < 4; i++) part[n][i] *= beta[i % 2];
            if (n / 4 == half) this->put_tokens(tiles.values, lane, n);
        }
    }

    // 16 tokens of dV, in 32 columns.
    DEVICE void save_values(const Tiles<DK, W>& tiles, const Lane& lane, const Walk& where, int chunk, global<bf16> to) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = warp % 4 * 16 + 8 * i + lane.group, column = where.column + warp / 4 * 32 + 8 * lane.place;
            uint32_t eight[4];
            load_matrix_transposed(eight, tiles.values + place<CHUNK>(warp / 4 * 32 + lane.spread(lane.matrix), warp % 4 * 16 + 8 * i));
            if (row < where.rows(chunk) && column < where.dv) {
                int64_t at = (where.token(chunk) + row) * where.width + 2 * where.key_heads * where.dk + where.head * where.dv;
                store(to + (at + column), make_uint4(eight[0], eight[1], eight[2], eight[3]));
            }
        }
    }

    // dS^T before the chunk.
    DEVICE void update(const Tiles<DK, W>& tiles, const Lane& lane, int chunk, bool last) {
        shared<float> factors = tiles.factors_of(chunk);
        if (!last) this->decay(factors);
#pragma unroll
        for (int step = 0; step < 4; step++) {
            uint32_t output[4], a[4], b[4];
            left_transposed<W>(output, tiles.outputs_of(chunk), lane, column, 16 * step);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                shared<float> factor = factors + (16 * step + 8 * (i / 2) + 2 * lane.place) * FACTORS;
                const float (&d)[4] = part[2 * step + i / 2];
                int at = 2 * (i % 2);
                output[i] = pack(factor[READ] * low(output[i]), factor[FACTORS + READ] * high(output[i]));
                a[i] = pack(-factor[RECALL] * d[at], -factor[FACTORS + RECALL] * d[at + 1]);
            }
#pragma unroll
            for (int n = 0; n < HALF / 8; n += 2) {
                right_transposed<DK>(b, tiles.q, lane, 16 * step, half * HALF + 8 * n);
                two_products(state[n], state[n + 1], output, b);
                right_transposed<DK>(b, tiles.k_of(chunk), lane, 16 * step, half * HALF + 8 * n);
                two_products(state[n], state[n + 1], a, b);
            }
        }
    }
};

// K, the factors and dO, a chunk ahead.
template <int DK, int W> DEVICE void load_ahead(const Tiles<DK, W>& tiles, const Sources& from, const Walk& where, int chunk) {
    tiles.load_keys(from, where, chunk, THREADS<W>);
    int64_t at = (where.token(chunk) * where.heads + where.head) * where.dv + where.column;
    load_tile<CHUNK, W>(tiles.outputs_of(chunk), from.outputs + at, where.heads * where.dv, where.rows(chunk),
                        where.dv - where.column, threadIdx.x, THREADS<W>);
}

template <int DK, int W> DEVICE void load_queries(const Tiles<DK, W>& tiles, const Sources& from, const Walk& where, int chunk) {
    int64_t at = where.token(chunk) * where.width + where.key_head * where.dk;
    load_tile<CHUNK, DK>(tiles.q, from.qkv + at, where.width, where.rows(chunk), where.dk, threadIdx.x, THREADS<W>);
}

template <int DK, int W> DEVICE void load_squares(const Tiles<DK, W>& tiles, const Sources& from, const Walk& where, int chunk) {
    int64_t at = (where.token(chunk) * where.heads + where.head) * CHUNK, stride = where.heads * CHUNK;
    load_tile<CHUNK, CHUNK>(tiles.weights, from.weights + at, stride, where.rows(chunk), CHUNK, threadIdx.x, THREADS<W>);
    load_tile<CHUNK, CHUNK>(tiles.solution, from.solution + at, stride, where.rows(chunk), CHUNK, threadIdx.x, THREADS<W>);
}

template <int DK, int W>
DEVICE void backward(const Sources& from, global<const uint32_t> documents, global<bf16> dqkv, global<bf16> dstates,
                     int key_heads, int per_key, int dk, int dv) {
    DYNAMIC_SHARED(bf16, memory);
    const Tiles<DK, W> tiles(memory);
    const Lane lane;
    const Walk where(documents, W, key_heads, per_key, dk, dv);
    dstates = dstates + where.state;
    const int64_t state = where.state_stride();

    Walker<DK, W> walker(threadIdx.x / 32);
    load_ahead(tiles, from, where, where.chunks - 1);
    load_squares(tiles, from, where, where.chunks - 1);
    commit_async();
    wait_async<0>();
    sync_block();
    for (int chunk = where.chunks - 1; chunk >= 0; chunk--) {
        const bool last = chunk + 1 == where.chunks;
        if (chunk > 0) {
            load_ahead(tiles, from, where, chunk - 1);
            load_queries(tiles, from, where, chunk);
        }
        commit_async();
        if (!last) walker.save_state(lane, where, dstates + chunk * state);
        walker.written_part(tiles, lane, chunk, last);
        sync_block();
        walker.solve(tiles, lane, chunk);
        wait_async<0>();
        sync_block();
        if (chunk > 0) load_squares(tiles, from, where, chunk - 1);
        commit_async();
        walker.save_values(tiles, lane, where, chunk, dqkv);
        if (chunk > 0) walker.update(tiles, lane, chunk, last);
        wait_async<0>();
        sync_block();
    }
}

}  // namespace

#define BACKWARD(name, DK, W)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS<W>, 1)                                                           \
        name(global<const bf16> qkv, global<const bf16> solution, global<const bf16> weights,                             \
             global<const float> factors, global<const uint32_t> documents, global<const bf16> dout, global<bf16> dqkv,   \
             global<bf16> dstates, int key_heads, int per_key, int dk, int dv) {                                          \
        backward<DK, W>(Sources{{qkv, solution, weights, factors}, dout}, documents, dqkv, dstates, key_heads, per_key,   \
                        dk, dv);                                                                                          \
    }

BACKWARD(delta_backward_32_32, 32, 32)
KERNEL(delta_backward_32_32)
BACKWARD(delta_backward_32_64, 32, 64)
KERNEL(delta_backward_32_64)
BACKWARD(delta_backward_128_32, 128, 32)
KERNEL(delta_backward_128_32)
BACKWARD(delta_backward_128_64, 128, 64)
KERNEL(delta_backward_128_64)
