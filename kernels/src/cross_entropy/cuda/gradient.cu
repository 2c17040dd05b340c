// Terms times the head: for each row sum 2^(e - greatest e) term[v] W[v], f32, in parts of the vocabulary.
//
// What a term lacks is a power of 2 for its row and its 64 words. It is multiplied in between shared memory and tensor cores, two
// values at a time and exactly: 16 instructions beside 32 mma, and no pass over the terms (2 R V bytes in, as many out, 5 % of
// the time). A thread keeps the factors of its 8 rows in registers and has the next ones on their way, one load of 16 bytes for
// every 64 words. The sum over the vocabulary is cut into parts where there would be too few tiles for all multiprocessors.
#include "gemm.h"

namespace gemm {

// Rows of terms and what they are multiplied with.
template <class T> struct Terms {
    static constexpr bool ALONG_K = true, CHANGES = false;
    static constexpr int GROUP = 64;
    static_assert(T::WARP_M == 64 && T::WARPS_K == 1 && GROUP % T::K == 0, "a thread's factors are 16 bytes");
    AlongK<T, T::M> rows;
    global<const bf16> factors;
    int stride, groups;
    // Those of two rows in each, and every one twice for two neighbours of a row.
    uint32_t next[4], now[4][2];

    // `factors`: those of the first group and the 64 rows of the warp; `stride` from group to group.
    DEVICE Terms(const AlongK<T, T::M>& rows, global<const bf16> factors, int stride, int groups)
        : rows(rows), factors(factors + int(threadIdx.x) % 32 / 4 * 8), stride(stride), groups(groups), next{}, now{} {
        fetch();
    }

    DEVICE void load(shared<bf16> to, int tile) const { rows.load(to, tile); }

    DEVICE void fetch() {
        if (groups-- <= 0) return;
        uint4 four = ::load<uint4>(factors);
        next[0] = four.x, next[1] = four.y, next[2] = four.z, next[3] = four.w;
        factors += stride;
    }

    // Goes on to the next group.
    DEVICE void go_on() {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            now[i][0] = permute_bytes(next[i], 0, 0x1010);
            now[i][1] = permute_bytes(next[i], 0, 0x3232);
        }
        fetch();
    }
};

// As for other operands, and then times the factors.
template <class T> DEVICE void read_a(uint32_t (&to)[T::ROWS][4], Terms<T>& a, shared<bf16> tile, int first, int step, int k) {
    int lane = int(threadIdx.x) % 32;
    if (step == 0 && k % Terms<T>::GROUP == 0) a.go_on();
#pragma unroll
    for (int i = 0; i < T::ROWS; i++) {
        load_matrix(to[i], tile + swizzled<T::K>(first + 16 * i + lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (int r = 0; r < 4; r++) to[i][r] = multiply_pairs(to[i][r], a.now[i][r % 2]);
    }
}

// Rows from one on.
struct LaterRows {
    int first, count;

    DEVICE int operator()(int row) const { return first + row < count ? first + row : -1; }
};

}  // namespace gemm

namespace {

using Small = gemm::Tile<128, 128, 32, 2, 2, 4>;
using Large = gemm::Tile<256, 128, 32, 4, 2, 4>;

struct Terms {
    global<const bf16> values, factors;
    int count, rows, columns, share;
};

// [vocabulary, stride], of which `width` columns are multiplied, and where the parts of that go.
struct Head {
    global<const bf16> values;
    int stride, width;
    global<float> parts;
};

template <class Tile>
DEVICE void gradient(const Terms& terms, int vocabulary, const Head& weight, const Head& pair) {
    DYNAMIC_SHARED(bf16, stages);
    int tiles = (weight.width + Tile::N - 1) / Tile::N;
    auto place = gemm::placed(blockIdx.x, terms.rows / Tile::M, tiles + (pair.width + Tile::N - 1) / Tile::N);
    bool of_pair = place.column >= tiles;
    Head head = of_pair ? pair : weight;
    int row = place.row * Tile::M, column = (of_pair ? place.column - tiles : place.column) * Tile::N;
    using Left = gemm::Terms<Tile>;
    int group = blockIdx.y * terms.share, groups = min(terms.share, terms.columns / Left::GROUP - group);
    const gemm::Part<Tile> part;
    typename Tile::Sums sum;
    gemm::clear<Tile>(sum);
    {
        int word = group * Left::GROUP;
        gemm::AlongK<Tile, Tile::M> rows(terms.values + word, terms.columns, groups * Left::GROUP, {terms.count}, row);
        Left left(rows, terms.factors + int64_t(group) * terms.rows + row + part.first_row, terms.rows, groups);
        gemm::AcrossK<Tile, Tile::N, gemm::LaterRows> right(head.values, head.stride, head.width, {word, vocabulary}, column);
        gemm::product<Tile>(sum, left, right, 0, groups * (Left::GROUP / Tile::K), stages);
    }
    int width = head.width;
    global<float> to = head.parts + (int64_t(blockIdx.y) * terms.rows + row) * width + column;
    gemm::each_pair<Tile>(sum, [&](int i, int j, float x, float y) {
        if (row + i >= terms.count || column + j >= width) return;
        if (width % 2 == 0) {
            store(to + int64_t(i) * width + j, make_float2(x, y));
        } else {
            to[int64_t(i) * width + j] = x;
            if (column + j + 1 < width) to[int64_t(i) * width + j + 1] = y;
        }
    });
}

}  // namespace

// terms [count, columns], factors [columns / 64, rows], weight [vocabulary, width]; parts [part_count, rows, width], of which
// each has `share` groups of 64 words. `rows` are whole tiles. With `rank` the same once more for b [vocabulary, stride_b] and
// inner_parts [part_count, rows, rank], in tiles behind those of the width.
#define GRADIENT(name, tile, blocks)                                                                                              \
    extern "C" __global__ void __launch_bounds__(tile::THREADS, blocks)                                                           \
        name(global<const bf16> terms, global<const bf16> factors, int count, int rows, int columns, int share,                   \
             global<const bf16> weight, int vocabulary, int width, global<float> parts, global<const bf16> b, int stride_b,       \
             int rank, global<float> inner_parts) {                                                                               \
        gradient<tile>({terms, factors, count, rows, columns, share}, vocabulary, {weight, width, width, parts},                  \
                       {b, stride_b, rank, inner_parts});                                                                         \
    }

GRADIENT(cross_entropy_gradient_small, Small, 2)
KERNEL(cross_entropy_gradient_small)
GRADIENT(cross_entropy_gradient_large, Large, 1)
KERNEL(cross_entropy_gradient_large)
