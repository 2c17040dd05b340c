// dv = pt dout and dk = scale * (p * (dout vt - delta))t q, added up over all queries that see a key.
//
// A block has KEYS keys of one key head and goes through the queries behind them, of one query head after the other: the sums
// stay in registers, and there is one order of adding. Where a card has more multiprocessors than there are blocks, the query
// heads of a key head are dealt out to several blocks, each with sums of its own, which are added in order afterwards. 8 width
// products for each pair of tokens and query head.
//
// Scores are made with keys as rows. Weights and their gradients go through shared memory once, so that a warp has other rows
// and columns in the second pair of products than in the first: 32 keys and 64 columns of both sums are 128 registers for heads
// of 128 and 256, and each fragment is used twice at least. Queries are fetched while dout is multiplied, and the other way
// round.
#include "attention_tile.h"

namespace {

struct Attention {
    global<const bf16> q, k, v, gradient;
    global<const float> log_sums, deltas;
    global<const uint32_t> ends;
    global<bf16> dk, dv;
    global<float> parts;
    int tokens, heads, key_heads, width;
    // Query heads of a block.
    int each;
    float scale;
};

// Scores become weights, and gradients of weights those of scores.
template <int M, int N>
DEVICE void differentiate(float (&scores)[M][N][4], float (&changes)[M][N][4], shared<const float> log_sums,
                          shared<const float> deltas, float scale) {
    int pair = lane_index() % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 log_sum = load<float2>(log_sums + 8 * n + pair), delta = load<float2>(deltas + 8 * n + pair);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float weight = fast_exp2(fused(scores[m][n][i], scale, -(i % 2 ? log_sum.y : log_sum.x)));
                scores[m][n][i] = weight;
                changes[m][n][i] = weight * (changes[m][n][i] - (i % 2 ? delta.y : delta.x));
            }
        }
    }
}

// Sums as they are, to be added to those of other blocks.
template <int M, int N>
DEVICE void write_part(global<float> to, const float (&sums)[M][N][4], int token, int tokens, int stride, int column, int width) {
    int lane = lane_index(), group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = token + 16 * m + 8 * i + group;
            auto line = to + int64_t(row) * stride;
#pragma unroll
            for (int n = 0; n < N; n++) {
                int at = column + 8 * n + pair;
                if (row < tokens && at < width) store(line + at, make_float2(sums[m][n][2 * i], sums[m][n][2 * i + 1]));
            }
        }
    }
}

// Writes a block's sums: as gradients where it has all query heads of its key head, else as a part of them. All have read their
// last of keys and values.
template <int WIDTH, int KEYS, int THREADS, int M, int N>
DEVICE void finish(const Attention& given, float (&dk)[M][N][4], const float (&dv)[M][N][4], shared<bf16> keys, shared<bf16> values,
                   int row, int column) {
    int first = int(blockIdx.y) * KEYS, key_head = int(blockIdx.x) * given.each / (given.heads / given.key_heads);
    int stride = given.key_heads * given.width, parts = int(gridDim.x) / given.key_heads;
    scale_all(dk, given.scale);
    if (given.parts) {
        uint64_t all = uint64_t(given.tokens) * stride, part = blockIdx.x % parts;
        auto to = given.parts + part * all + key_head * given.width;
        write_part(to, dk, first + row, given.tokens, stride, column, given.width);
        write_part(to + parts * all, dv, first + row, given.tokens, stride, column, given.width);
        return;
    }
    store_tile<WIDTH>(keys, row, column, dk);
    store_tile<WIDTH>(values, row, column, dv);
    sync_block();
    Head<bf16> to_keys(given.dk, given.tokens, given.key_heads, key_head, given.width);
    Head<bf16> to_values(given.dv, given.tokens, given.key_heads, key_head, given.width);
    write_rows<WIDTH>(to_keys, first, KEYS, keys, 0, int(threadIdx.x), THREADS);
    write_rows<WIDTH>(to_values, first, KEYS, values, 0, int(threadIdx.x), THREADS);
}

// A thread's log-sum or delta of ROWS queries: the first threads have those, the next ones these.
template <int ROWS> DEVICE float describe(const Attention& given, int head, int token) {
    int number = int(threadIdx.x);
    token += number % ROWS;
    if (number >= 2 * ROWS || token >= given.tokens) return 0.0f;
    if (number < ROWS) return given.log_sums[int64_t(head) * given.tokens + token] * LOG2_E;
    return float(given.deltas[head * delta_rows(given.tokens) + token]);
}

// Of scores a warp has 1 / ACROSS of the keys and 1 / ALONG of the queries; of sums 1 / DOWN of the keys.
template <int WIDTH, int KEYS, int ROWS, int WARPS, int ACROSS, int DOWN> DEVICE void change_keys(const Attention& given) {
    constexpr int THREADS = WARPS * WARP, ALONG = WARPS / ACROSS, BESIDE = WARPS / DOWN;
    constexpr int M = KEYS / ACROSS / 16, N = ROWS / ALONG / 8, R = KEYS / DOWN / 16, D = WIDTH / BESIDE / 8;
    static_assert(THREADS >= 2 * ROWS, "a thread for each log-sum and each delta");
    SHARED(int, ends, KEYS);
    SHARED(float, log_sums, ROWS);
    SHARED(float, deltas, ROWS);
    DYNAMIC_SHARED(bf16, keys);
    shared<bf16> values = keys + KEYS * WIDTH, queries = values + KEYS * WIDTH, gradients = queries + ROWS * WIDTH;
    shared<bf16> weights = gradients + ROWS * WIDTH, changed = weights + KEYS * ROWS;
    int tokens = given.tokens, first = int(blockIdx.y) * KEYS;
    int head = int(blockIdx.x) * given.each, last_head = head + given.each - 1;
    int key_head = head / (given.heads / given.key_heads);
    int end = int(given.ends[min(first + KEYS, tokens) - 1]) - first;

    auto head_of = [&](global<const bf16> matrix, int number) {
        return Head<const bf16>(matrix, tokens, given.heads, number, given.width);
    };
    copy_rows<WIDTH, KEYS, THREADS>(keys, {given.k, tokens, given.key_heads, key_head, given.width}, first);
    copy_rows<WIDTH, KEYS, THREADS>(values, {given.v, tokens, given.key_heads, key_head, given.width}, first);
    copy_rows<WIDTH, ROWS, THREADS>(gradients, head_of(given.gradient, head), first);
    commit_async();
    for (int i = threadIdx.x; i < KEYS; i += THREADS) ends[i] = first + i < tokens ? int(given.ends[first + i]) - first : 0;
    float described = describe<ROWS>(given, head, first);

    int warp = warp_of_thread(), key = warp / ALONG * 16 * M, column = warp % ALONG * 8 * N;
    int row = warp / BESIDE * 16 * R, beside = warp % BESIDE * 8 * D;
    auto of_keys = row_reader<WIDTH>(key), of_sums = row_reader<WIDTH>(0, beside);
    auto of_queries = column_reader<WIDTH>(column);
    auto of_weights = row_reader<ROWS>(row);
    float dk[R][D][4], dv[R][D][4];
    clear(dk);
    clear(dv);
    for (int query = 0;;) {
        int next = query + ROWS < end ? query + ROWS : 0, next_head = next ? head : head + 1;
        wait_async<0>();
        sync_block();
        copy_rows<WIDTH, ROWS, THREADS>(queries, head_of(given.q, head), first + query);
        commit_async();
        if (int(threadIdx.x) < ROWS) log_sums[threadIdx.x] = described;
        if (int(threadIdx.x) >= ROWS && int(threadIdx.x) < 2 * ROWS) deltas[threadIdx.x - ROWS] = described;
        float scores[M][N][4], changes[M][N][4];
        clear(changes);
        multiply_rows<WIDTH>(changes, values, of_keys, gradients, of_queries);
        wait_async<0>();
        sync_block();
        clear(scores);
        multiply_rows<WIDTH>(scores, keys, of_keys, queries, of_queries);
        // Whether the last of the warp's keys is not behind its first query, and its last query not behind a document.
        int seen_to = query + column + 8 * N;
        if (query + column < key + 16 * M - 1 || ends[key] < seen_to || ends[key + 16 * M - 1] < seen_to) {
            hide<true>(scores, ends, key, query + column);
        }
        differentiate(scores, changes, log_sums + column, deltas + column, given.scale * LOG2_E);
        store_tile<ROWS>(weights, key, column, scores);
        store_tile<ROWS>(changed, key, column, changes);
        sync_block();
        multiply_columns<ROWS>(dv, weights, of_weights, gradients, of_sums);
        sync_block();
        if (next_head <= last_head) copy_rows<WIDTH, ROWS, THREADS>(gradients, head_of(given.gradient, next_head), first + next);
        commit_async();
        if (next_head <= last_head) described = describe<ROWS>(given, next_head, first + next);
        multiply_columns<ROWS>(dk, changed, of_weights, queries, of_sums);
        if (next_head > last_head) break;
        query = next;
        head = next_head;
    }
    finish<WIDTH, KEYS, THREADS>(given, dk, dv, keys, values, row, beside);
}

}  // namespace

#define KEY_GRADIENT(name, blocks, width, keys, rows, warps, across, down)                                                     \
    extern "C" __global__ void __launch_bounds__(warps * WARP, blocks)                                                         \
        name(global<const bf16> q, global<const bf16> k, global<const bf16> v, global<const bf16> gradient,                    \
             global<const float> log_sums, global<const float> deltas, global<const uint32_t> ends, global<bf16> dk,           \
             global<bf16> dv, global<float> parts, int tokens, int heads, int key_heads, int head_width, int each,             \
             float scale) {                                                                                                    \
        change_keys<width, keys, rows, warps, across, down>({q, k, v, gradient, log_sums, deltas, ends, dk, dv, parts,         \
                                                             tokens, heads, key_heads, head_width, each, scale});              \
    }

KEY_GRADIENT(attention_keys_32, 3, 32, 64, 64, 4, 2, 2)
KERNEL(attention_keys_32)
KEY_GRADIENT(attention_keys_64, 2, 64, 64, 64, 4, 2, 2)
KERNEL(attention_keys_64)
KEY_GRADIENT(attention_keys_128, 2, 128, 64, 64, 4, 2, 2)
KERNEL(attention_keys_128)
KEY_GRADIENT(attention_keys_256, 1, 256, 32, 32, 4, 2, 1)
KERNEL(attention_keys_256)
KEY_GRADIENT(attention_keys_256_tall, 1, 256, 64, 64, 8, 4, 2)
KERNEL(attention_keys_256_tall)

// The parts of both gradients, each added in order: 16 bytes read for every part, 8 written.
extern "C" __global__ void __launch_bounds__(256)
    attention_add_parts(global<const float> parts, int number, global<bf16> dk, global<bf16> dv, uint64_t count) {
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    auto from = parts + blockIdx.y * number * count;
    auto to = blockIdx.y ? dv : dk;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count / 4; at += step) {
        float4 sum = load<float4>(from + at * 4);
        for (int part = 1; part < number; part++) {
            float4 more = load<float4>(from + part * count + at * 4);
            sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
        }
        store(to + at * 4, make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w)));
    }
}
KERNEL(attention_add_parts)
