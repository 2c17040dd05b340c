// dq = scale * (p * (dout vt - delta)) k, with delta = sum(dout * out) over a row, and p made again from q, k and log_sums.
//
// A block has ROWS queries of one head, like the forward pass, and adds up their gradient in registers: no other block adds to
// it, so that there is one order of adding. 6 width products for each pair of tokens; what the block needs of keys and values
// comes from the second-level cache. Weights never leave registers: what a lane has of a product is what it needs of it for the
// next. Values are fetched while keys are multiplied and the other way round. `delta` falls off here, for one more reading of
// out and none of a pass of its own; the gradient of keys and values, which is next, needs it too.
#include "attention_tile.h"

namespace {

struct Attention {
    global<const bf16> q, k, v, out, gradient;
    global<const float> log_sums;
    global<const uint32_t> starts;
    global<float> deltas;
    global<bf16> dq;
    int tokens, heads, key_heads, width;
    float scale;
};

// sum(dout * out) of a warp's rows, and their log-sums for powers of 2, 0 where there is no row.
template <int WIDTH>
DEVICE void describe_rows(const Attention& given, int head, int first, int own, int rows, shared<float> log_sums,
                          global<float> deltas) {
    constexpr int PIECES = WIDTH / 8;
    int lane = lane_index(), column = lane % PIECES * 8;
    Head<const bf16> out(given.out, given.tokens, given.heads, head, given.width);
    Head<const bf16> gradient(given.gradient, given.tokens, given.heads, head, given.width);
    for (int at = own + lane / PIECES; at < own + rows; at += WARP / PIECES) {
        int token = first + at;
        bool there = token < given.tokens;
        float sum = 0;
        if (there && column < given.width) {
            uint4 x = load<uint4>(out.at(token, column)), y = load<uint4>(gradient.at(token, column));
            const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++) sum = fused(high(xs[i]), high(ys[i]), fused(low(xs[i]), low(ys[i]), sum));
        }
#pragma unroll
        for (int by = PIECES / 2; by > 0; by /= 2) sum += shuffle_xor(sum, by);
        if (column == 0) {
            deltas[at - own] = sum;
            log_sums[at] = there ? given.log_sums[int64_t(head) * given.tokens + token] * LOG2_E : 0.0f;
        }
    }
}

// Scores become their gradients: p * (dp - delta). Deltas are read anew each time: with 512 bytes more of shared memory an A100
// would have one block instead of two.
template <int M, int N>
DEVICE void differentiate(float (&scores)[M][N][4], const float (&changes)[M][N][4], shared<const float> log_sums,
                          global<const float> deltas, float scale) {
    int group = lane_index() / 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float log_sum = log_sums[16 * m + 8 * i + group], delta = deltas[16 * m + 8 * i + group];
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++) {
                    scores[m][n][j] = fast_exp2(fused(scores[m][n][j], scale, -log_sum)) * (changes[m][n][j] - delta);
                }
            }
        }
    }
}

template <int WIDTH, int ROWS, int KEYS, int WARPS> DEVICE void change_queries(const Attention& given) {
    constexpr int THREADS = WARPS * WARP, M = ROWS / WARPS / 16, N = KEYS / 8, D = WIDTH / 8;
    SHARED(int, starts, ROWS);
    SHARED(float, log_sums, ROWS);
    DYNAMIC_SHARED(bf16, queries);
    shared<bf16> gradients = queries + ROWS * WIDTH, keys = gradients + ROWS * WIDTH, values = keys + KEYS * WIDTH;
    int head = int(blockIdx.x), tokens = given.tokens, key_head = head / (given.heads / given.key_heads);
    int first = int(gridDim.y - 1 - blockIdx.y) * ROWS;
    Head<const bf16> k(given.k, tokens, given.key_heads, key_head, given.width);
    Head<const bf16> v(given.v, tokens, given.key_heads, key_head, given.width);

    int key = int(given.starts[first]) - first;
    copy_rows<WIDTH, ROWS, THREADS>(gradients, {given.gradient, tokens, given.heads, head, given.width}, first);
    copy_rows<WIDTH, KEYS, THREADS>(values, v, first + key);
    commit_async();
    copy_rows<WIDTH, ROWS, THREADS>(queries, {given.q, tokens, given.heads, head, given.width}, first);
    copy_rows<WIDTH, KEYS, THREADS>(keys, k, first + key);
    commit_async();
    for (int i = threadIdx.x; i < ROWS; i += THREADS) starts[i] = int(given.starts[min(first + i, tokens - 1)]) - first;

    int own = warp_of_thread() * 16 * M;
    auto deltas = given.deltas + (head * delta_rows(tokens) + first + own);
    describe_rows<WIDTH>(given, head, first, own, 16 * M, log_sums, deltas);
    auto of_rows = row_reader<WIDTH>(0);
    auto of_keys = column_reader<WIDTH>(0);
    float sums[M][D][4];
    clear(sums);
    // What a lane of the warp has written there, others read.
    sync_warp();
    for (; key < ROWS; key += KEYS) {
        float changes[M][N][4];
        clear(changes);
        wait_async<1>();
        sync_block();
        bool any = key < own + 16 * M && key + KEYS > starts[own];
        if (any) multiply_rows<WIDTH>(changes, gradients + own * WIDTH, of_rows, values, of_keys);
        wait_async<0>();
        sync_block();
        if (key + KEYS < ROWS) copy_rows<WIDTH, KEYS, THREADS>(values, v, first + key + KEYS);
        commit_async();
        if (any) {
            float scores[M][N][4];
            clear(scores);
            multiply_rows<WIDTH>(scores, queries + own * WIDTH, of_rows, keys, of_keys);
            if (key < starts[own + 16 * M - 1] || key + KEYS - 1 > own) hide<false>(scores, starts, own, key);
            differentiate(scores, changes, log_sums + own, global<const float>(deltas), given.scale * LOG2_E);
            multiply_weights<WIDTH>(sums, scores, keys, of_rows);
        }
        sync_block();
        if (key + KEYS < ROWS) copy_rows<WIDTH, KEYS, THREADS>(keys, k, first + key + KEYS);
        commit_async();
    }
    scale_all(sums, given.scale);
    // The warp's own queries are not needed any more.
    store_tile<WIDTH>(queries, own, 0, sums);
    sync_warp();
    Head<bf16> dq(given.dq, tokens, given.heads, head, given.width);
    write_rows<WIDTH>(dq, first + own, 16 * M, queries, own, lane_index(), WARP);
}

}  // namespace

#define QUERY_GRADIENT(name, blocks, width, rows, keys, warps)                                                                 \
    extern "C" __global__ void __launch_bounds__(warps * WARP, blocks)                                                         \
        name(global<const bf16> q, global<const bf16> k, global<const bf16> v, global<const bf16> out,                         \
             global<const bf16> gradient, global<const float> log_sums, global<const uint32_t> starts, global<float> deltas,   \
             global<bf16> dq, int tokens, int heads, int key_heads, int head_width, float scale) {                             \
        change_queries<width, rows, keys, warps>({q, k, v, out, gradient, log_sums, starts, deltas, dq, tokens, heads,         \
                                                  key_heads, head_width, scale});                                              \
    }

QUERY_GRADIENT(attention_queries_32, 4, 32, 64, 64, 4)
KERNEL(attention_queries_32)
QUERY_GRADIENT(attention_queries_64, 2, 64, 128, 32, 4)
KERNEL(attention_queries_64)
QUERY_GRADIENT(attention_queries_128, 2, 128, 128, 32, 4)
KERNEL(attention_queries_128)
QUERY_GRADIENT(attention_queries_256, 2, 256, 64, 32, 4)
KERNEL(attention_queries_256)
QUERY_GRADIENT(attention_queries_256_tall, 1, 256, 128, 32, 8)
KERNEL(attention_queries_256_tall)
