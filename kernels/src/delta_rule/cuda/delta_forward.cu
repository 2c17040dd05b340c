// The state from the first chunk of a document to the last, and the outputs, for one value head and W of its columns:
//   X = beta (V - E (K S))     N = X + U X     O = E (Q S) + P N     S <- exp(G_C) S + (exp(G_C - G) K)^T N
// from what delta_intra made of every chunk (factors, U as `solution`, P as `weights`).
//
// Only the walk over chunks is sequential, so its length decides: what one chunk takes from S to the next S. Writers hold
// S^T in registers, 16 columns of the values and half of the keys each (32 f32 a thread), and compute everything
// transposed: the result of one product is the left operand of the next in the very registers it stands in, so that only
// K S goes through shared memory, to add both halves. Readers make the outputs beside them, 16 tokens each, from a bf16 copy
// of S^T and N^T in shared memory. Of a chunk, 84 mma of a writer's are in a row, 232 if one warp did all.
// K, Q, U, P, V are copied a chunk ahead; a block has 98 KB at W = 32, which fits everywhere, 130 KB at W = 64.
// W = 64 halves what is read of K, Q, U and P again and again; W = 32 is for few documents, where blocks would be missing.
// At 8k tokens: 33 GFLOP beside 0.4 GB of reads that mostly hit L2 and 67 MB of outputs (and as much of N and twice of states
// where backward wants them): 0.1 ms of an H200 are expected where documents are many, 0.15 ms for a single one.
#include "delta_walk.h"

namespace {

using namespace delta;

constexpr int READERS = 4;

template <int W> constexpr int THREADS = 32 * (STATE_WARPS<W> + READERS);

// A block's own memory.
template <int DK, int W> struct Tiles : WalkTiles<DK, W> {
    shared<bf16> values, states, written;

    DEVICE explicit Tiles(shared<bf16> memory) : WalkTiles<DK, W>(memory) {
        values = this->own;
        states = values + CHUNK * W;
        written = states + W * DK;
    }
};

// Half of S^T, and what a warp does with it.
template <int DK, int W> struct Writer : HalfState<DK, W> {
    using Half = HalfState<DK, W>;
    using Half::column, Half::half, Half::HALF, Half::part, Half::state;

    DEVICE explicit Writer(int warp) : Half(warp) {}

    // This half's part of (K S)^T.
    DEVICE void recall(const Tiles<DK, W>& tiles, const Lane& lane, int chunk) {
        clear(part);
        this->multiply_keys(tiles.k_of(chunk), lane);
        this->give_part(tiles.exchange, lane);
    }

    // N^T, in `part`; both halves compute it. X is rounded wherever it goes: where keys are alike, later tokens take back what
    // rounding adds, as they do with all that is in a state, but only if they see the same X.
    DEVICE void solve(const Tiles<DK, W>& tiles, const Lane& lane, int chunk) {
        if (chunk > 0) this->take_part(tiles.exchange, lane);
        uint32_t surprise[4][4];
#pragma unroll
        for (int step = 0; step < 4; step++) {
            uint32_t v[4];
            left_transposed<W>(v, tiles.values, lane, column, 16 * step);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float (&d)[4] = part[2 * step + i / 2];
                int token = 16 * step + 8 * (i / 2) + 2 * lane.place, at = 2 * (i % 2);
                shared<float> first = tiles.factors_of(chunk) + token * FACTORS, second = first + FACTORS;
                d[at] = first[BETA] * (low(v[i]) - first[RECALL] * d[at]);
                d[at + 1] = second[BETA] * (high(v[i]) - second[RECALL] * d[at + 1]);
                surprise[step][i] = round_pair(d[at], d[at + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int step = 0; step <= n; step++) {
                uint32_t b[4];
                right<CHUNK>(b, tiles.solution, lane, 16 * step, 16 * n);
                two_products(part[2 * n], part[2 * n + 1], surprise[step], b);
            }
        }
        // A half of the tokens each.
#pragma unroll
        for (int n = 0; n < 8; n++) {
            if (n / 4 == half) this->put_tokens(tiles.written, lane, n);
        }
    }

    // S^T after the chunk, and its copy for the readers.
    DEVICE void update(const Tiles<DK, W>& tiles, const Lane& lane, int chunk) {
        shared<float> factors = tiles.factors_of(chunk);
        if (chunk > 0) this->decay(factors);
#pragma unroll
        for (int step = 0; step < 4; step++) {
            uint32_t a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float (&d)[4] = part[2 * step + i / 2];
                int token = 16 * step + 8 * (i / 2) + 2 * lane.place, at = 2 * (i % 2);
                shared<float> factor = factors + (token * FACTORS + KEEP);
                a[i] = pack(factor[0] * d[at], factor[FACTORS] * d[at + 1]);
            }
#pragma unroll
            for (int n = 0; n < HALF / 8; n += 2) {
                right_transposed<DK>(b, tiles.k_of(chunk), lane, 16 * step, half * HALF + 8 * n);
                two_products(state[n], state[n + 1], a, b);
            }
        }
#pragma unroll
        for (int n = 0; n < HALF / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int to = place<DK>(column + lane.group + 8 * i, half * HALF + 8 * n + 2 * lane.place);
                store(tiles.states + to, pack(state[n][2 * i], state[n][2 * i + 1]));
            }
        }
    }
};

// 16 tokens of the outputs.
template <int DK, int W> struct Reader {
    float read[W / 8][4];
    int reader;

    DEVICE explicit Reader(int reader) : reader(reader) { clear(read); }

    // The state before the chunk, as backward wants it.
    DEVICE void save_state(const Tiles<DK, W>& tiles, const Lane& lane, const Walk& where, global<bf16> to) {
#pragma unroll 2
        for (int at = reader * 32 + lane.number; at < W * (DK / 8); at += READERS * 32) {
            int row = at / (DK / 8), column = at % (DK / 8) * 8;
            if (where.column + row < where.dv && column < where.dk) {
                store(to + (int64_t(where.column + row) * where.dk + column), load<uint4>(tiles.states + place<DK>(row, column)));
            }
        }
    }

    // E (Q S).
    DEVICE void recall(const Tiles<DK, W>& tiles, const Lane& lane, int chunk) {
        clear(read);
        if (chunk == 0) return;
#pragma unroll 2
        for (int step = 0; step < DK; step += 16) {
            uint32_t a[4], b[4];
            left<DK>(a, tiles.q, lane, 16 * reader, step);
#pragma unroll
            for (int n = 0; n < W / 8; n += 2) {
                right_spread<DK>(b, tiles.states, lane, step, n / 4 * 32, n % 4);
                two_products(read[n], read[n + 1], a, b);
            }
        }
        shared<float> factor = tiles.factors_of(chunk) + ((16 * reader + lane.group) * FACTORS + READ);
        float of_row[2] = {factor[0], factor[8 * FACTORS]};
#pragma unroll
        for (int n = 0; n < W / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) read[n][i] *= of_row[i / 2];
        }
    }

    // + P N, and out it goes; N too where it is wanted.
    DEVICE void finish(const Tiles<DK, W>& tiles, const Lane& lane, const Walk& where, int chunk, global<bf16> out,
                       global<bf16> written) {
        for (int step = 0; step <= reader; step++) {
            uint32_t a[4], b[4];
            left<CHUNK>(a, tiles.weights, lane, 16 * reader, 16 * step);
#pragma unroll
            for (int n = 0; n < W / 8; n += 2) {
                right_spread<CHUNK>(b, tiles.written, lane, 16 * step, n / 4 * 32, n % 4);
                two_products(read[n], read[n + 1], a, b);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = 16 * reader + 8 * i + lane.group;
            int64_t at = ((where.token(chunk) + row) * where.heads + where.head) * where.dv + where.column;
#pragma unroll
            for (int part = 0; part < W / 32; part++) {
                int column = 32 * part + 8 * lane.place;
                bool there = row < where.rows(chunk) && where.column + column < where.dv;
                uint32_t eight[4];
#pragma unroll
                for (int j = 0; j < 4; j++) eight[j] = pack(read[4 * part + j][2 * i], read[4 * part + j][2 * i + 1]);
                if (there) store(out + (at + column), make_uint4(eight[0], eight[1], eight[2], eight[3]));
                if (!written) continue;
                load_matrix_transposed(eight, tiles.written + place<CHUNK>(32 * part + lane.spread(lane.matrix), 16 * reader + 8 * i));
                if (there) store(written + (at + column), make_uint4(eight[0], eight[1], eight[2], eight[3]));
            }
        }
    }
};

// U and V by all threads, and by each reader its rows of Q.
template <int DK, int W>
DEVICE void load_values(const Tiles<DK, W>& tiles, const WalkSources& from, const Walk& where, int chunk, int reader, const Lane& lane) {
    int64_t token = where.token(chunk), at = (token * where.heads + where.head) * CHUNK;
    int rows = where.rows(chunk);
    load_tile<CHUNK, CHUNK>(tiles.solution, from.solution + at, where.heads * CHUNK, rows, CHUNK, threadIdx.x, THREADS<W>);
    at = token * where.width + 2 * where.key_heads * where.dk + where.head * where.dv + where.column;
    load_tile<CHUNK, W>(tiles.values, from.qkv + at, where.width, rows, where.dv - where.column, threadIdx.x, THREADS<W>);
    if (reader < 0) return;
    bool there = 16 * reader < rows;
    at = (token + (there ? 16 * reader : 0)) * where.width + where.key_head * where.dk;
    load_tile<16, DK>(tiles.q, from.qkv + at, where.width, rows - 16 * reader, where.dk, lane.number, 32, 16 * reader);
}

// By each reader its rows of P.
template <int DK, int W>
DEVICE void load_weights(const Tiles<DK, W>& tiles, const WalkSources& from, const Walk& where, int chunk, int reader, const Lane& lane) {
    int rows = where.rows(chunk);
    bool there = 16 * reader < rows;
    int64_t at = ((where.token(chunk) + (there ? 16 * reader : 0)) * where.heads + where.head) * CHUNK;
    load_tile<16, CHUNK>(tiles.weights, from.weights + at, where.heads * CHUNK, rows - 16 * reader, CHUNK, lane.number, 32,
                         16 * reader);
}

// Both walks come to the same three barriers for each chunk: K S is there in two halves; N and S have changed hands; the
// next S has.
template <int DK, int W>
DEVICE void write(const Tiles<DK, W>& tiles, const WalkSources& from, const Walk& where, const Lane& lane, int warp) {
    Writer<DK, W> writer(warp);
    for (int chunk = 0; chunk < where.chunks; chunk++) {
        const bool more = chunk + 1 < where.chunks;
        if (more) tiles.load_keys(from, where, chunk + 1, THREADS<W>);
        commit_async();
        if (chunk > 0) writer.recall(tiles, lane, chunk);
        wait_async<1>();
        sync_block();
        writer.solve(tiles, lane, chunk);
        wait_async<0>();
        sync_block();
        if (more) {
            load_values(tiles, from, where, chunk + 1, -1, lane);
            writer.update(tiles, lane, chunk);
        }
        commit_async();
        sync_block();
    }
}

template <int DK, int W>
DEVICE void read(const Tiles<DK, W>& tiles, const WalkSources& from, const Walk& where, const Lane& lane, int warp,
                 global<bf16> out, global<bf16> states, global<bf16> written) {
    Reader<DK, W> reader(warp);
    const int64_t state = where.state_stride();
    for (int chunk = 0; chunk < where.chunks; chunk++) {
        const bool more = chunk + 1 < where.chunks;
        if (more) tiles.load_keys(from, where, chunk + 1, THREADS<W>);
        load_weights(tiles, from, where, chunk, warp, lane);
        commit_async();
        if (states && chunk > 0) reader.save_state(tiles, lane, where, states + (chunk - 1) * state);
        wait_async<1>();
        sync_block();
        reader.recall(tiles, lane, chunk);
        wait_async<0>();
        sync_block();
        if (more) load_values(tiles, from, where, chunk + 1, warp, lane);
        commit_async();
        reader.finish(tiles, lane, where, chunk, out, written);
        sync_block();
    }
}

template <int DK, int W>
DEVICE void forward(const WalkSources& from, global<const uint32_t> documents, global<bf16> out, global<bf16> states,
                    global<bf16> written, int key_heads, int per_key, int dk, int dv) {
    DYNAMIC_SHARED(bf16, memory);
    const Tiles<DK, W> tiles(memory);
    const Lane lane;
    const Walk where(documents, W, key_heads, per_key, dk, dv);
    const int warp = threadIdx.x / 32, reader = warp - STATE_WARPS<W>;

    tiles.load_keys(from, where, 0, THREADS<W>);
    commit_async();
    load_values(tiles, from, where, 0, reader, lane);
    commit_async();
    wait_async<1>();
    sync_block();
    if (reader < 0) {
        write(tiles, from, where, lane, warp);
    } else {
        if (states) states = states + where.state;
        read(tiles, from, where, lane, reader, out, states, written);
    }
}

}  // namespace

#define FORWARD(name, DK, W)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS<W>, 1)                                                       \
        name(global<const bf16> qkv, global<const bf16> solution, global<const bf16> weights,                         \
             global<const float> factors, global<const uint32_t> documents, global<bf16> out, global<bf16> states,    \
             global<bf16> written, int key_heads, int per_key, int dk, int dv) {                                      \
        forward<DK, W>(WalkSources{qkv, solution, weights, factors}, documents, out, states, written, key_heads,      \
                       per_key, dk, dv);                                                                              \
    }

FORWARD(delta_forward_32_32, 32, 32)
KERNEL(delta_forward_32_32)
FORWARD(delta_forward_32_64, 32, 64)
KERNEL(delta_forward_32_64)
FORWARD(delta_forward_128_32, 128, 32)
KERNEL(delta_forward_128_32)
FORWARD(delta_forward_128_64, 128, 64)
KERNEL(delta_forward_128_64)
