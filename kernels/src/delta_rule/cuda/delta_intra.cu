// What a chunk of up to 64 tokens needs before any state is known, for one key head and its value heads:
//   factors    E key_dim^(-1/2) / |q|, E / |k|, exp(G_C - G) / |k|, and beta or G
//   solution   U = (I + L)^-1 - I,   L = strictly_lower(beta K K^T D)   (bf16, 64 for each token and value head)
//   weights    P = tril(Q K^T D),    D_ij = exp(G_i - G_j)              (bf16, 64 for each token and value head)
// with q and k divided by their lengths. A block does one chunk of one key head, all blocks at once: K K^T and Q K^T are
// made once for all value heads, from the raw bf16 rows (the lengths are factors of rows and columns in f32), so nothing is
// rounded before the inverse, and of the inverse not the diagonal, its largest part. It is made in f32 within 16 x 16
// (forward substitution, a column for each thread) and goes on by doubling, 16 to 32 to 64, with tf32 products:
// T21 = -T22 (L21 T11).
// It reads 2 x 16 KB and writes 2 x 8 KB for each value head (18 KB with the factors): at 8k tokens some 140 MB, 30 us of an
// H200 at its bandwidth; the 2.6 MFLOP of a block are less than that. Three blocks of a multiprocessor and more hide each other's
// substitutions.
#include "delta_tiles.h"

namespace {

using namespace delta;

constexpr int THREADS = 128;
// A row of a square in f32: 4 floats more, so that fragments lie in different banks.
constexpr int STRIDE = CHUNK + 4;

// The rows 16 m.. of Q K^T and K K^T, with spread columns, in the first 32 columns and where they reach below the diagonal
// in the others.
template <int DK>
DEVICE void squares(float (&qk)[8][4], float (&kk)[8][4], shared<bf16> q, shared<bf16> k, const Lane& lane, int warp) {
    clear(qk);
    clear(kk);
#pragma unroll 2
    for (int step = 0; step < DK; step += 16) {
        uint32_t of_q[4], of_k[4], b[4];
        left<DK>(of_q, q, lane, 16 * warp, step);
        left<DK>(of_k, k, lane, 16 * warp, step);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half == 1 && warp < 2) break;
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                right_spread<DK>(b, k, lane, step, 32 * half, j);
                two_products(qk[4 * half + j], qk[4 * half + j + 1], of_q, b);
                two_products(kk[4 * half + j], kk[4 * half + j + 1], of_k, b);
            }
        }
    }
}

// 16 x 8 NT of a product of squares in f32, rounded to tf32: a at its first row, b at its first column.
template <int NT> DEVICE void product(float (&d)[NT][4], shared<float> a, shared<float> b, const Lane& lane, int depth) {
    clear(d);
#pragma unroll 2
    for (int k = 0; k < depth; k += 8) {
        uint32_t left[4];
#pragma unroll
        for (int r = 0; r < 4; r++) left[r] = to_tf32(a[(lane.group + 8 * (r % 2)) * STRIDE + k + lane.place + 4 * (r / 2)]);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint32_t right[2];
#pragma unroll
            for (int r = 0; r < 2; r++) right[r] = to_tf32(b[(k + lane.place + 4 * r) * STRIDE + 8 * n + lane.group]);
            mma_tf32(d[n], left, right);
        }
    }
}

template <int NT> DEVICE void put(shared<float> to, const float (&d)[NT][4], float factor, const Lane& lane) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            store(to + ((lane.group + 8 * i) * STRIDE + 8 * n + 2 * lane.place),
                  make_float2(factor * d[n][2 * i], factor * d[n][2 * i + 1]));
        }
    }
}

// The inverse of I + L, of the four squares of 16 on the diagonal; the square right of the first and third is 0.
DEVICE void invert_diagonal(shared<float> lower, shared<float> inverse, const Lane& lane, int warp) {
    int column = lane.number % 16, first = 16 * warp;
    if (lane.number >= 16) {
        if (warp % 2 == 0) {
            for (int i = 0; i < 16; i++) inverse[(first + i) * STRIDE + first + 16 + column] = 0.0f;
        }
        return;
    }
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float sum = i == column ? 1.0f : 0.0f;
#pragma unroll
        for (int j = 0; j < i; j++) sum -= lower[(first + i) * STRIDE + first + j] * x[j];
        x[i] = sum;
        inverse[(first + i) * STRIDE + first + column] = sum;
    }
}

// The rest of it below the diagonal.
DEVICE void invert_rest(shared<float> lower, shared<float> inverse, const Lane& lane, int warp) {
    sync_block();
    if (warp < 2) {
        int first = 32 * warp;
        shared<float> at = inverse + ((first + 16) * STRIDE + first);
        float d[2][4];
        product(d, lower + ((first + 16) * STRIDE + first), inverse + (first * STRIDE + first), lane, 16);
        put(at, d, 1.0f, lane);
        sync_warp();
        product(d, at + 16, at, lane, 16);
        sync_warp();
        put(at, d, -1.0f, lane);
    }
    sync_block();
    int row = 32 + 16 * (warp % 2), column = 16 * (warp / 2);
    float d[2][4];
    product(d, lower + row * STRIDE, inverse + column, lane, 32);
    put(inverse + (row * STRIDE + column), d, 1.0f, lane);
    sync_block();
    product(d, inverse + (row * STRIDE + 32), inverse + (32 * STRIDE + column), lane, 32);
    sync_block();
    put(inverse + (row * STRIDE + column), d, -1.0f, lane);
    sync_block();
}

// U of the inverse, rounded to bf16, half a column for each thread. What rounding takes from a row is given to the next, so that
// sums over rows keep their value: where keys are alike, states are such sums, and rows cancel in them.
DEVICE void round_columns(shared<float> inverse, shared<bf16> to) {
    static_assert(THREADS == 2 * CHUNK, "half a column for each thread");
    const int column = threadIdx.x % CHUNK, first = threadIdx.x / CHUNK * (CHUNK / 2);
    float lost = 0.0f;
#pragma unroll 4
    for (int row = first; row < first + CHUNK / 2; row++) {
        float value = column < row ? inverse[row * STRIDE + column] + lost : 0.0f;
        bf16 rounded = to_bf16(value);
        lost = value - to_float(rounded);
        to[row * CHUNK + column] = rounded;
    }
}

template <int DK>
DEVICE void intra(global<const bf16> qkv, global<const bf16> ba, global<const float> a_log, global<const float> dt_bias,
                  global<const uint32_t> chunks, global<float> factors, global<bf16> solution, global<bf16> weights,
                  int key_heads, int per_key, int dk, int dv) {
    static_assert(2 * DK * sizeof(bf16) <= 2 * STRIDE * sizeof(float), "rows and squares have the same memory");
    SHARED(float, memory, 2 * CHUNK * STRIDE);
    SHARED(float, sums, CHUNK);
    SHARED(float, betas, CHUNK);
    SHARED(float, q_scale, CHUNK);
    SHARED(float, k_scale, CHUNK);
    shared<float> lower = memory, inverse = memory + CHUNK * STRIDE;
    shared<bf16> q = as<bf16>(memory), k = q + CHUNK * DK;

    const Lane lane;
    const int thread = threadIdx.x, warp = thread / 32;
    const int chunk = blockIdx.x / key_heads, key_head = blockIdx.x % key_heads, heads = key_heads * per_key;
    const int64_t first = chunks[4 * chunk], width = int64_t(2) * key_heads * dk + int64_t(heads) * dv;
    const int rows = int(chunks[4 * chunk + 1]);

    global<const bf16> of_q = qkv + (first * width + key_head * dk);
    load_tile<CHUNK, DK>(q, of_q, width, rows, dk, thread, THREADS);
    load_tile<CHUNK, DK>(k, of_q + key_heads * dk, width, rows, dk, thread, THREADS);
    commit_async();
    wait_async<0>();
    sync_block();
    float qk[8][4], kk[8][4];
    squares<DK>(qk, kk, q, k, lane, warp);
    if (thread < CHUNK) {
        q_scale[thread] = inverse_length<DK>(q, thread) / sqrtf(float(dk));
    } else {
        k_scale[thread - CHUNK] = inverse_length<DK>(k, thread - CHUNK);
    }
    // Each thread has two rows.
    const int row_of[2] = {16 * warp + lane.group, 16 * warp + lane.group + 8};

    for (int member = 0; member < per_key; member++) {
        const int head = key_head * per_key + member;
        sync_block();
        if (warp == 0) {
            float g[2], beta[2];
            const float rate = expf(a_log[head]), bias = dt_bias[head];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int row = 2 * lane.number + i;
                g[i] = beta[i] = 0.0f;
                if (row < rows) {
                    int64_t at = (first + row) * 2 * heads + key_head * 2 * per_key + member;
                    beta[i] = 1.0f / (1.0f + expf(-to_float(ba[at])));
                    g[i] = log_decay(rate, to_float(ba[at + per_key]) + bias);
                }
            }
            float sum = g[0] + g[1];
#pragma unroll
            for (int by = 1; by < 32; by *= 2) {
                float before = shuffle_up(sum, by);
                if (lane.number >= by) sum += before;
            }
            sums[2 * lane.number] = sum - g[1];
            sums[2 * lane.number + 1] = sum;
            betas[2 * lane.number] = beta[0];
            betas[2 * lane.number + 1] = beta[1];
        }
        sync_block();
        if (thread < rows) {
            float sum = sums[thread], decay = expf(sum), scale = k_scale[thread];
            float4 four = {decay * q_scale[thread], decay * scale, expf(sums[CHUNK - 1] - sum) * scale, betas[thread]};
            global<float> to = factors + ((first + thread) * heads + head) * (SETS * FACTORS);
            store(to + FOR_WALKS * FACTORS, four);
            four.w = sum;
            store(to + FOR_GRADIENTS * FACTORS, four);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = row_of[i];
            const float sum = sums[row], of_row = q_scale[row], lower_row = betas[row] * k_scale[row];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = 32 * half + 8 * lane.place;
                uint32_t eight[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float l[2], p[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        int at = column + 2 * j + e;
                        float between = at <= row ? fast_exp(sum - sums[at]) * k_scale[at] : 0.0f;
                        p[e] = of_row * between * qk[4 * half + j][2 * i + e];
                        l[e] = at < row ? lower_row * between * kk[4 * half + j][2 * i + e] : 0.0f;
                    }
                    eight[j] = pack(p[0], p[1]);
                    store(lower + (row * STRIDE + column + 2 * j), make_float2(l[0], l[1]));
                }
                if (row < rows) {
                    store(weights + (((first + row) * heads + head) * CHUNK + column),
                          make_uint4(eight[0], eight[1], eight[2], eight[3]));
                }
            }
        }
        sync_block();
        invert_diagonal(lower, inverse, lane, warp);
        invert_rest(lower, inverse, lane, warp);
        round_columns(inverse, as<bf16>(lower));
        sync_block();
        for (int at = thread; at < rows * (CHUNK / 8); at += THREADS) {
            store(solution + (((first + at / 8) * heads + head) * CHUNK + at % 8 * 8), load<uint4>(as<bf16>(lower) + 8 * at));
        }
    }
}

}  // namespace

#define INTRA(name, DK)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                              \
        name(global<const bf16> qkv, global<const bf16> ba, global<const float> a_log, global<const float> dt_bias,       \
             global<const uint32_t> chunks, global<float> factors, global<bf16> solution, global<bf16> weights,           \
             int key_heads, int per_key, int dk, int dv) {                                                                \
        intra<DK>(qkv, ba, a_log, dt_bias, chunks, factors, solution, weights, key_heads, per_key, dk, dv);               \
    }

INTRA(delta_intra_32, 32)
KERNEL(delta_intra_32)
INTRA(delta_intra_128, 128)
KERNEL(delta_intra_128)
