// out = softmax(q kt / sqrt(width)) v, causal and within documents, with the softmax made as the keys come by.
//
// A block has ROWS queries of one head, a warp 16 or 32 of them, and goes through the keys that any of them may see; nothing of
// [tokens, tokens] ever exists. 4 width products for each pair of tokens stand against 2 width / ROWS values read from the
// second-level cache, so tensor cores are the limit. A warp of 32 rows uses each fragment of k and v twice: shared memory
// then gives 3 fragments where tensor cores take 4. 32 x 128 sums and 32 x 64 scores fill the registers, so heads of 256 have
// 16 rows a warp. The next keys are on their way while values are multiplied, and the other way round: two barriers for each
// KEYS keys. Blocks with the most keys come first.
#include "attention_tile.h"

namespace {

struct Attention {
    global<const bf16> q, k, v;
    global<bf16> out;
    global<float> log_sums;
    global<const uint32_t> starts;
    int tokens, heads, key_heads, width;
    // Of scores, for powers of 2.
    float scale;
};

// Makes what was summed before relative to a row's largest score so far. That soon stays as it is, and then nothing is to do.
template <int M, int N, int D>
DEVICE void rebase(const float (&scores)[M][N][4], float (&sums)[M][D][4], float (&top)[M][2], float (&total)[M][2], float scale) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        float before[2];
        bool same = true;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = top[m][i];
#pragma unroll
            for (int n = 0; n < N; n++) largest = fmaxf(largest, fmaxf(scores[m][n][2 * i], scores[m][n][2 * i + 1]));
            largest = fmaxf(largest, shuffle_xor(largest, 1));
            largest = fmaxf(largest, shuffle_xor(largest, 2));
            same = same && top[m][i] == largest;
            // A row that had seen nothing has no sums.
            before[i] = top[m][i] == -INFINITY ? 0.0f : fast_exp2((top[m][i] - largest) * scale);
            top[m][i] = largest;
        }
        if (vote_all(same)) continue;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            total[m][i] *= before[i];
#pragma unroll
            for (int d = 0; d < D; d++) {
                sums[m][d][2 * i] *= before[i];
                sums[m][d][2 * i + 1] *= before[i];
            }
        }
    }
}

// Scores become weights, relative to the row's largest score so far.
template <int M, int N> DEVICE void soften(float (&scores)[M][N][4], const float (&top)[M][2], float (&total)[M][2], float scale) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            // Of a row that has seen nothing yet, all weights are 0.
            float zero = top[m][i] == -INFINITY ? 0.0f : top[m][i] * scale;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++) {
                    scores[m][n][j] = fast_exp2(fused(scores[m][n][j], scale, -zero));
                    total[m][i] += scores[m][n][j];
                }
            }
        }
    }
}

// Divides by the sum of weights, and writes that sum's logarithm.
template <int M, int D>
DEVICE void finish(float (&sums)[M][D][4], const float (&top)[M][2], const float (&total)[M][2], const Attention& given, int head,
                   int row) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float all = total[m][i];
            all += shuffle_xor(all, 1);
            all += shuffle_xor(all, 2);
            float part = quotient(1.0f, all);
#pragma unroll
            for (int d = 0; d < D; d++) {
                sums[m][d][2 * i] *= part;
                sums[m][d][2 * i + 1] *= part;
            }
            int lane = lane_index(), token = row + 16 * m + 8 * i + lane / 4;
            if (lane % 4 == 0 && token < given.tokens) {
                given.log_sums[int64_t(head) * given.tokens + token] = fused(top[m][i], given.scale * LN_2, fast_log(all));
            }
        }
    }
}

template <int WIDTH, int ROWS, int KEYS, int WARPS> DEVICE void attend(const Attention& given) {
    constexpr int THREADS = WARPS * WARP, M = ROWS / WARPS / 16, N = KEYS / 8, D = WIDTH / 8;
    SHARED(int, starts, ROWS);
    DYNAMIC_SHARED(bf16, queries);
    shared<bf16> keys = queries + ROWS * WIDTH, values = keys + KEYS * WIDTH;
    int head = int(blockIdx.x), tokens = given.tokens, key_head = head / (given.heads / given.key_heads);
    int first = int(gridDim.y - 1 - blockIdx.y) * ROWS;
    Head<const bf16> k(given.k, tokens, given.key_heads, key_head, given.width);
    Head<const bf16> v(given.v, tokens, given.key_heads, key_head, given.width);

    int key = int(given.starts[first]) - first;
    copy_rows<WIDTH, ROWS, THREADS>(queries, {given.q, tokens, given.heads, head, given.width}, first);
    copy_rows<WIDTH, KEYS, THREADS>(keys, k, first + key);
    commit_async();
    for (int i = threadIdx.x; i < ROWS; i += THREADS) starts[i] = int(given.starts[min(first + i, tokens - 1)]) - first;

    int own = warp_of_thread() * 16 * M;
    auto of_queries = row_reader<WIDTH>(own), of_values = row_reader<WIDTH>(0);
    auto of_keys = column_reader<WIDTH>(0);
    float sums[M][D][4], top[M][2], total[M][2];
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; m++) {
        top[m][0] = top[m][1] = -INFINITY;
        total[m][0] = total[m][1] = 0;
    }
    for (; key < ROWS; key += KEYS) {
        wait_async<0>();
        sync_block();
        copy_rows<WIDTH, KEYS, THREADS>(values, v, first + key);
        commit_async();
        // Whether any of the warp's rows sees any of these keys.
        bool any = key < own + 16 * M && key + KEYS > starts[own];
        float scores[M][N][4];
        clear(scores);
        if (any) multiply_rows<WIDTH>(scores, queries, of_queries, keys, of_keys);
        wait_async<0>();
        sync_block();
        if (key + KEYS < ROWS) copy_rows<WIDTH, KEYS, THREADS>(keys, k, first + key + KEYS);
        commit_async();
        if (!any) continue;
        if (key < starts[own + 16 * M - 1] || key + KEYS - 1 > own) hide<false>(scores, starts, own, key);
        rebase(scores, sums, top, total, given.scale);
        soften(scores, top, total, given.scale);
        multiply_weights<WIDTH>(sums, scores, values, of_values);
    }
    finish(sums, top, total, given, head, first + own);
    // The warp's own queries are not needed any more.
    store_tile<WIDTH>(queries, own, 0, sums);
    sync_warp();
    Head<bf16> out(given.out, tokens, given.heads, head, given.width);
    write_rows<WIDTH>(out, first + own, 16 * M, queries, own, lane_index(), WARP);
}

}  // namespace

#define FORWARD(name, blocks, width, rows, keys, warps)                                                                        \
    extern "C" __global__ void __launch_bounds__(warps * WARP, blocks)                                                         \
        name(global<const bf16> q, global<const bf16> k, global<const bf16> v, global<bf16> out, global<float> log_sums,       \
             global<const uint32_t> starts, int tokens, int heads, int key_heads, int head_width, float scale) {               \
        attend<width, rows, keys, warps>({q, k, v, out, log_sums, starts, tokens, heads, key_heads, head_width, scale});       \
    }

FORWARD(attention_forward_32, 4, 32, 64, 64, 4)
KERNEL(attention_forward_32)
FORWARD(attention_forward_64, 2, 64, 128, 64, 4)
KERNEL(attention_forward_64)
FORWARD(attention_forward_128, 2, 128, 128, 64, 4)
KERNEL(attention_forward_128)
FORWARD(attention_forward_256, 2, 256, 64, 64, 4)
KERNEL(attention_forward_256)
FORWARD(attention_forward_256_tall, 1, 256, 128, 64, 8)
KERNEL(attention_forward_256_tall)
