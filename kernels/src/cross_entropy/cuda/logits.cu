// The logits of a chunk of rows, never written as such: a block computes 128 x 128 of them on tensor cores and leaves, for every
// row and 64 words, e = ceil(max l) and sum 2^(l - e), with l in units of ln 2; and as bf16 the terms 2^(l - e) of that sum, which
// are the probabilities but for a power of 2 that is known later (gradient.cu) and a factor of the row.
//
// So a term has the 8 bits of a bf16 whatever the size of its logit (a logit in bf16 would be off by up to 1/8 at 32), the matrix
// is multiplied with the head twice and not three times, and the sums are those of f32. 2 R V H operations for 2 (R + V) H bytes
// read and 2 R V written: with 1024 rows and H = 2048 some 700 a byte, so tensor cores set the pace (gemm.h); exponentials are
// one for each H mma terms, 3 to 5 % of the time, while another block of the multiprocessor multiplies.
#include "gemm.h"

namespace {

using Small = gemm::Tile<128, 128, 32, 2, 2, 4>;
using Large = gemm::Tile<256, 128, 32, 4, 2, 4>;
// Words that share an exponent: those that a warp computes.
constexpr int GROUP = 64;
// Fragments of a warp's row.
constexpr int COLUMNS = GROUP / 8;

// Instead of the exponent of nothing.
constexpr float LEAST = -1e30f;

struct Out {
    global<const int> targets;
    global<bf16> terms;
    global<float> groups, target_logits;
    int count, vocabulary, rows, columns;
};

// A row of a warp's sums: its part of 16 of the 64 words.
DEVICE void finish_row(const Out& out, int row, int word, float (&x)[COLUMNS][2]) {
    int lane = threadIdx.x % 32, place = lane % 4;
    float largest = LEAST;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
        for (int v = 0; v < 2; v++) {
            x[j][v] = word + 8 * j + 2 * place + v < out.vocabulary ? x[j][v] * LOG2_E : -INFINITY;
            largest = fmaxf(largest, x[j][v]);
        }
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    float exponent = ceilf(largest), total = 0;
    bool there = row < out.count;
    // The target among this thread's words, if it is there.
    int target = there ? out.targets[row] - word - 2 * place : -1;
    global<bf16> terms = out.terms ? out.terms + int64_t(row) * out.columns + word + 2 * place : out.terms;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        float term[2];
#pragma unroll
        for (int v = 0; v < 2; v++) {
            term[v] = fast_exp2(x[j][v] - exponent);
            total += term[v];
            if (target == 8 * j + v) {
                out.target_logits[row] = x[j][v];
                // Its gradient is p - 1, for which f32 is needed: another kernel's task.
                term[v] = 0;
            }
        }
        if (there && out.terms) store(terms + 8 * j, pack(term[0], term[1]));
    }
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    if (place == 0) store(out.groups + 2 * (int64_t(word / GROUP) * out.rows + row), make_float2(exponent, total));
}

// Operands of a kernel.
struct Rows {
    global<const bf16> hidden;
    global<const int> list;
    int count, width;
};

struct Pair {
    global<const bf16> inner;
    int stride_inner;
    global<const bf16> b;
    int stride_b, rank;
};

template <class Tile> DEVICE void logits(const Rows& rows, global<const bf16> weight, const Pair& pair, const Out& out) {
    static_assert(Tile::WARP_N == GROUP, "a warp's words share an exponent");
    DYNAMIC_SHARED(bf16, stages);
    auto place = gemm::placed(blockIdx.x, out.rows / Tile::M, out.columns / Tile::N);
    int row = place.row * Tile::M, word = place.column * Tile::N;
    typename Tile::Sums sum;
    gemm::clear<Tile>(sum);
    {
        gemm::AlongK<Tile, Tile::M, gemm::ListedRows> left(rows.hidden, rows.width, rows.width, {rows.list, rows.count}, row);
        gemm::AlongK<Tile, Tile::N> right(weight, rows.width, rows.width, {out.vocabulary}, word);
        gemm::product<Tile>(sum, left, right, 0, (rows.width + Tile::K - 1) / Tile::K, stages);
    }
    if (pair.rank > 0) {
        sync_block();
        gemm::AlongK<Tile, Tile::M> left(pair.inner, pair.stride_inner, pair.rank, {rows.count}, row);
        gemm::AlongK<Tile, Tile::N> right(pair.b, pair.stride_b, pair.rank, {out.vocabulary}, word);
        gemm::product<Tile>(sum, left, right, 0, (pair.rank + Tile::K - 1) / Tile::K, stages);
    }
    const gemm::Part<Tile> part;
#pragma unroll
    for (int i = 0; i < Tile::ROWS; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x[COLUMNS][2];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                x[j][0] = sum[i][j][2 * half];
                x[j][1] = sum[i][j][2 * half + 1];
            }
            int at = part.first_row + 16 * i + 8 * half + int(threadIdx.x) % 32 / 4;
            finish_row(out, row + at, word + part.first_column, x);
        }
    }
}

}  // namespace

// hidden [*, width] of which `list` names `count` rows, weight [vocabulary, width]; with `rank` also inner [count, stride_inner]
// and b [vocabulary, stride_b], whose product is added. terms [count, columns] if they are wanted, groups [columns / 64, rows].
#define LOGITS(name, tile, blocks)                                                                                                \
    extern "C" __global__ void __launch_bounds__(tile::THREADS, blocks)                                                           \
        name(global<const bf16> hidden, global<const int> list, global<const int> targets, int count, int width,                  \
             global<const bf16> weight, int vocabulary, global<const bf16> inner, int stride_inner, global<const bf16> b,         \
             int stride_b, int rank, global<bf16> terms, global<float> groups, global<float> target_logits, int rows,             \
             int columns) {                                                                                                       \
        Out out{targets, terms, groups, target_logits, count, vocabulary, rows, columns};                                         \
        logits<tile>({hidden, list, count, width}, weight, {inner, stride_inner, b, stride_b, rank}, out);                        \
    }

// Two blocks of 4 warps: one goes through its exponentials while the other multiplies.
LOGITS(cross_entropy_logits_small, Small, 2)
KERNEL(cross_entropy_logits_small)
// One of 8: a quarter less to read from L2, which is what cards with faster tensor cores wait for.
LOGITS(cross_entropy_logits_large, Large, 1)
KERNEL(cross_entropy_logits_large)
