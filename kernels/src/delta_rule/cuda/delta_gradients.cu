// The gradients of queries, keys and gates of one chunk and key head, summed over its value heads in their order. With S the
// state before the chunk, dS the gradient of the one after it, and of each value head
//   dP = tril(dO N^T)    M = dV N^T    A = dP D / (|q| |k| key_dim^(1/2))    B = -strictly_lower(M D) / (|k| |k|)
// the gradients of q and k, through their lengths still to be divided by and with raw rows q, k, are
//   dq = E' dO S^T + A k      dk = -E'' dV S^T + K' N dS^T + A^T q + (B + B^T) k
// (E', E'', K' the factors READ, RECALL, KEEP). All that goes from one side of a token to the other makes its log decay's:
//   dg_t = sum_{i >= t > j} Z_ij + sum_{i >= t} <E' dO S^T, q>_i - <E'' dV S^T, k>_i + sum_{j < t} <K' N dS^T, k>_j
//          + exp(G_C) <dS, S>,      Z_ij = dP_ij P_ij + B_ij <k_i, k_j>
// Each of these is what a sum over i >= t of (row - column) sums leaves: the same f32 value is added and taken away, so what
// does not cross t leaves nothing even where decays are strong. (<dO, O> - <dV, V>, which says the same, would be a difference
// of two roundings.) The write strength's is db = (1 - beta) M_ii / beta.
//
// A block of 8 warps has 64 tokens; a warp 32 of them and 32 keys of dq and dk (96 f32 a thread, the part from dS by itself,
// since its products with k are wanted alone), and 32 x 16 of dP and M. Columns of the values are the depth: they pass by in
// tiles of 32, S and dS and dO, dV, N at once, the next being copied; so 99 KB are enough at any size of a head. For each tile
// 11 ldmatrix feed 32 mma. At 8k tokens: 52 GFLOP and 0.5 GB (mostly states): about 0.2 ms of an H200 are expected.
#include "delta_gates.h"

namespace {

using namespace delta;

// All tiles of a head have been added.
template <int DK>
DEVICE void finish_head(Gradients<DK>& gradients, const Tiles<DK>& tiles, const Lane& lane, const Problem& p, int member) {
    const int warp = threadIdx.x / 32, head = p.key_head * p.per_key + member;
    float of_rows[4], of_columns[2][2], kept;
    cross(gradients, tiles, lane, of_rows, kept);
    kept -= gradients.kept_all;
#pragma unroll
    for (int i = 0; i < 4; i++) of_rows[i] -= gradients.crossing[i];
    decay(gradients, tiles, lane, p, head, of_rows, of_columns);
    gradients.within(tiles, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float sum = over_place(of_rows[i]);
        if (lane.place == 0) tiles.row_sums()[gradients.column * CHUNK + gradients.row + 8 * i + lane.group] = sum;
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float sum = over_group(of_columns[n][e]);
            int to = 16 * gradients.column + 8 * n + 2 * lane.place + e;
            if (lane.group == 0) tiles.column_sums()[gradients.row / 32 * CHUNK + to] = sum;
        }
    }
    // A chunk that a state follows is whole.
    if (p.after != NO_STATE) kept += whole_decay(tiles.factors_of(head)) * gradients.through;
    float all = over_group(over_place(kept));
    if (lane.number == 0) tiles.totals[warp] = all;
    sync_block();
    if (warp == 0) gates(tiles, lane, p, member);
    if (member + 1 == p.per_key) return;
    gradients.through = 0.0f;
    cross(gradients, tiles, lane, gradients.crossing, gradients.kept_all);
#pragma unroll
    for (int m = 0; m < 2; m++) {
        clear(gradients.weights[m]);
        clear(gradients.solution[m]);
    }
}

// Through the lengths of q and k, and out.
template <int DK>
DEVICE void finish(Gradients<DK>& gradients, const Tiles<DK>& tiles, const Lane& lane, const Problem& p) {
    shared<float> along_q = tiles.row_sums(), along_k = along_q + 4 * CHUNK;
    shared<bf16> dq = tiles.stages, dk = dq + CHUNK * DK;
    const int row = gradients.row, column = gradients.column;
    sync_block();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = row + 8 * i + lane.group, e = i % 2 * 2;
        float of_q = 0.0f, of_k = 0.0f;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (!gradients.has_keys) break;
            float (&q)[4] = gradients.q[i / 2][n], (&k)[4] = gradients.k[i / 2][n];
            const float (&kept)[4] = gradients.kept[i / 2][n];
            k[e] += kept[e];
            k[e + 1] += kept[e + 1];
            const int from = place<DK>(at, 32 * column + 8 * n + 2 * lane.place);
            const uint32_t raw_q = load<uint32_t>(tiles.q + from), raw_k = load<uint32_t>(tiles.k + from);
            of_q += low(raw_q) * q[e] + high(raw_q) * q[e + 1];
            of_k += low(raw_k) * k[e] + high(raw_k) * k[e + 1];
        }
        of_q = over_place(of_q);
        of_k = over_place(of_k);
        if (lane.place == 0) {
            along_q[column * CHUNK + at] = of_q;
            along_k[column * CHUNK + at] = of_k;
        }
    }
    sync_block();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (!gradients.has_keys) break;
        const int at = row + 8 * i + lane.group, e = i % 2 * 2;
        float of_q = 0.0f, of_k = 0.0f;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            of_q += along_q[w * CHUNK + at];
            of_k += along_k[w * CHUNK + at];
        }
        of_q *= tiles.q_inverse[at] * tiles.q_inverse[at];
        of_k *= tiles.k_inverse[at] * tiles.k_inverse[at];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float (&q)[4] = gradients.q[i / 2][n], (&k)[4] = gradients.k[i / 2][n];
            const int from = place<DK>(at, 32 * column + 8 * n + 2 * lane.place);
            const uint32_t raw_q = load<uint32_t>(tiles.q + from), raw_k = load<uint32_t>(tiles.k + from);
            store(dq + from, pack(q[e] - of_q * low(raw_q), q[e + 1] - of_q * high(raw_q)));
            store(dk + from, pack(k[e] - of_k * low(raw_k), k[e + 1] - of_k * high(raw_k)));
        }
    }
    sync_block();
    for (int at = threadIdx.x; at < p.rows * (DK / 8); at += THREADS) {
        const int token = at / (DK / 8), key = at % (DK / 8) * 8;
        if (key >= p.dk) continue;
        const int64_t to = (p.first + token) * p.width + p.key_head * p.dk + key;
        store(p.dqkv + to, load<uint4>(dq + place<DK>(token, key)));
        store(p.dqkv + (to + p.key_heads * p.dk), load<uint4>(dk + place<DK>(token, key)));
    }
}

template <int DK> DEVICE void gradients(const Problem& p) {
    DYNAMIC_SHARED(bf16, memory);
    const Tiles<DK> tiles(memory);
    const Lane lane;
    const int thread = threadIdx.x, depth = (p.dv + DEPTH - 1) / DEPTH, all = p.per_key * depth;
    const int head = p.key_head * p.per_key;
    const bool has_state = p.before != NO_STATE, has_dstate = p.after != NO_STATE;

    global<const bf16> of_q = p.qkv + (p.first * p.width + p.key_head * p.dk);
    load_tile<CHUNK, DK>(tiles.q, of_q, p.width, p.rows, p.dk, thread, THREADS);
    load_tile<CHUNK, DK>(tiles.k, of_q + p.key_heads * p.dk, p.width, p.rows, p.dk, thread, THREADS);
    commit_async();
    load_stage(tiles.stage(0, head), p, head, 0);
    commit_async();
    wait_async<1>();
    sync_block();
    Gradients<DK> gradients(thread / 32);
    gradients.square(tiles, lane);
    if (thread < CHUNK) {
        tiles.q_inverse[thread] = inverse_length<DK>(tiles.q, thread);
    } else if (thread < 2 * CHUNK) {
        tiles.k_inverse[thread - CHUNK] = inverse_length<DK>(tiles.k, thread - CHUNK);
    }
    for (int number = 0; number < all; number++) {
        const int member = number / depth, next = number + 1;
        if (next < all) load_stage(tiles.stage(next, head + next / depth), p, head + next / depth, next % depth * DEPTH);
        commit_async();
        wait_async<1>();
        sync_block();
        const Stage<DK> stage = tiles.stage(number, head + member);
        gradients.add(stage, lane, has_state, has_dstate);
        if (has_state && has_dstate) gradients.pass(stage);
        if (next % depth == 0) finish_head(gradients, tiles, lane, p, member);
        sync_block();
    }
    finish(gradients, tiles, lane, p);
}

}  // namespace

#define GRADIENTS(name, DK)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                             \
        name(global<const bf16> qkv, global<const bf16> ba, global<const float> a_log, global<const float> dt_bias,      \
             global<const uint32_t> chunks, global<const float> factors, global<const bf16> weights,                     \
             global<const bf16> states, global<const bf16> written, global<const bf16> dstates, global<const bf16> dout, \
             global<bf16> dqkv, global<bf16> dba, int key_heads, int per_key, int dk, int dv) {                          \
        const Given given = {qkv, ba, weights, dout, written, states, dstates, factors, a_log, dt_bias, dqkv, dba};      \
        gradients<DK>(Problem(given, chunks, key_heads, per_key, dk, dv));                                               \
    }

GRADIENTS(delta_gradients_32, 32)
KERNEL(delta_gradients_32)
GRADIENTS(delta_gradients_128, 128)
KERNEL(delta_gradients_128)
