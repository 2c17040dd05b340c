// What the walks over a document's chunks share, forward and backward: where a block is, the tiles that both have, and half of
// a state with what both do with it.
//
// A warp holds 16 columns of the values and half of the keys of a transposed state in registers. What is a sum over all keys
// is made in halves by two warps, which give their parts to each other through shared memory and add them.
#pragma once

#include "delta_tiles.h"

namespace delta {

// Where a block is that walks over a document: a value head of it, and the first of its columns.
struct Walk {
    int64_t first, width;
    int tokens, chunks, heads, head, key_head, key_heads, dk, dv, column;
    // Of the document's first state: its second chunk's.
    int64_t state;

    DEVICE Walk(global<const uint32_t> documents, int columns, int key_heads, int per_key, int dk, int dv)
        : heads(key_heads * per_key), key_heads(key_heads), dk(dk), dv(dv) {
        int splits = (dv + columns - 1) / columns, document = blockIdx.x / (splits * heads);
        column = blockIdx.x % splits * columns;
        head = blockIdx.x / splits % heads;
        key_head = head / per_key;
        first = documents[4 * document];
        tokens = int(documents[4 * document + 1]);
        chunks = (tokens + CHUNK - 1) / CHUNK;
        width = int64_t(2) * key_heads * dk + int64_t(heads) * dv;
        state = (int64_t(documents[4 * document + 2]) * heads + head) * dv * dk;
    }

    DEVICE int rows(int chunk) const { return min(tokens - chunk * CHUNK, CHUNK); }
    DEVICE int64_t token(int chunk) const { return first + int64_t(chunk) * CHUNK; }
    // Values from one state of the head to the next.
    DEVICE int64_t state_stride() const { return int64_t(heads) * dv * dk; }
};

// Values of a warp in the memory through which halves are exchanged: 16 columns, 64 tokens.
constexpr int EXCHANGE = 16 * CHUNK;

// Warps that hold states of W columns.
template <int W> constexpr int STATE_WARPS = W / 8;

// What both walks read.
struct WalkSources {
    global<const bf16> qkv, solution, weights;
    global<const float> factors;
};

// Keys and factors of two chunks, queries, U and P of one, what halves are exchanged through; what only one walk has
// begins at `own`.
template <int DK, int W> struct WalkTiles {
    shared<bf16> k, q, solution, weights, own;
    shared<float> exchange, factors;

    DEVICE explicit WalkTiles(shared<bf16> memory) {
        k = memory;
        q = k + 2 * CHUNK * DK;
        solution = q + CHUNK * DK;
        weights = solution + CHUNK * CHUNK;
        exchange = as<float>(weights + CHUNK * CHUNK);
        factors = exchange + STATE_WARPS<W> * EXCHANGE;
        own = as<bf16>(factors + 2 * CHUNK * FACTORS);
    }
    DEVICE shared<bf16> k_of(int chunk) const { return k + chunk % 2 * (CHUNK * DK); }
    DEVICE shared<float> factors_of(int chunk) const { return factors + chunk % 2 * (CHUNK * FACTORS); }

    // Begins to copy K and the factors, by all threads.
    DEVICE void load_keys(const WalkSources& from, const Walk& where, int chunk, int threads) const {
        const int64_t token = where.token(chunk), at = token * where.width + (where.key_heads + where.key_head) * where.dk;
        const int rows = where.rows(chunk);
        load_tile<CHUNK, DK>(k_of(chunk), from.qkv + at, where.width, rows, where.dk, threadIdx.x, threads);
        load_factors(factors_of(chunk), from.factors, FOR_WALKS, token, rows, where.heads, where.head, threadIdx.x);
    }
};

// Rounds both to bf16, and returns the pair.
DEVICE uint32_t round_pair(float& first, float& second) {
    const uint32_t pair = pack(first, second);
    first = low(pair);
    second = high(pair);
    return pair;
}

// 16 columns of the values and half of the keys of a state, and 16 columns of all 64 tokens, both transposed.
template <int DK, int W> struct HalfState {
    static constexpr int HALF = DK / 2;
    float state[HALF / 8][4];
    float part[8][4];
    int warp, half, column;

    DEVICE explicit HalfState(int warp) : warp(warp), half(warp % 2), column(warp / 2 * 16) {
        clear(state);
        clear(part);
    }

    // part += the state times this half of the keys.
    DEVICE void multiply_keys(shared<bf16> keys, const Lane& lane) {
#pragma unroll
        for (int step = 0; step < HALF / 16; step++) {
            uint32_t a[4], b[4];
            as_left(a, state[2 * step], state[2 * step + 1]);
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                right<DK>(b, keys, lane, half * HALF + 16 * step, 8 * n);
                two_products(part[n], part[n + 1], a, b);
            }
        }
    }

    DEVICE void give_part(shared<float> exchange, const Lane& lane) const {
        shared<float> own = exchange + (warp * EXCHANGE + lane.number * 4);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float4 four = {part[n][0], part[n][1], part[n][2], part[n][3]};
            store(own + n * 128, four);
        }
    }

    // part += the other half's.
    DEVICE void take_part(shared<float> exchange, const Lane& lane) {
        shared<float> other = exchange + ((warp ^ 1) * EXCHANGE + lane.number * 4);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float4 four = load<float4>(other + n * 128);
            part[n][0] += four.x;
            part[n][1] += four.y;
            part[n][2] += four.z;
            part[n][3] += four.w;
        }
    }

    // Two rows of tokens of the part, from the 8 n-th on, into a tile [columns][tokens].
    DEVICE void put_tokens(shared<bf16> tile, const Lane& lane, int n) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int to = place<CHUNK>(column + lane.group + 8 * i, 8 * n + 2 * lane.place);
            store(tile + to, pack(part[n][2 * i], part[n][2 * i + 1]));
        }
    }

    // exp(G_C) S.
    DEVICE void decay(shared<float> factors) {
        const float whole = whole_decay(factors);
#pragma unroll
        for (int n = 0; n < HALF / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) state[n][i] *= whole;
        }
    }
};

}  // namespace delta
