// The stable order of rows by expert: a counting sort in three small launches, and the tiles of the grouped products.
//
// `choose` has counted the choices of each chunk of 64 tokens. moe_scan turns them into the first place of every chunk within
// its expert, moe_offsets finds where experts begin and writes the list of tiles, and moe_place gives each slot its row: a
// warp counts its own 8 tokens, so the rows of an expert are in the order of tokens whatever runs first. All of it moves a few
// hundred KB; what it costs is launches.
#include "device.h"

namespace {

constexpr int WARPS = 8;
constexpr int TOKENS = 8;
constexpr int CHUNK = WARPS * TOKENS;
// Experts at most, and the bits of one more.
constexpr int EXPERTS = 1024;
constexpr int BITS = 11;

// The sum over all threads before this one, in a block of 1024; `sums` has 32 places.
DEVICE uint32_t before(uint32_t value, shared<uint32_t> sums) {
    int lane = threadIdx.x % 32, warp = int(threadIdx.x) / 32;
    uint32_t inclusive = value;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        uint32_t other = shuffle_up(inclusive, by);
        if (lane >= by) inclusive += other;
    }
    if (lane == 31) sums[warp] = inclusive;
    sync_block();
    uint32_t earlier = 0;
    for (int w = 0; w < warp; w++) earlier += sums[w];
    return earlier + inclusive - value;
}

}  // namespace

// Replaces the counts [chunks, experts] by their sums over the chunks before, and gives the sums over all. A block has 32
// experts, each warp an eighth of the chunks.
extern "C" __global__ void __launch_bounds__(256)
    moe_scan(global<uint32_t> counts, int chunks, int experts, global<uint32_t> totals) {
    SHARED(uint32_t, sums, WARPS * 32);
    int lane = threadIdx.x % 32, warp = int(threadIdx.x) / 32;
    int expert = int(blockIdx.x) * 32 + lane;
    bool has = expert < experts;
    int each = (chunks + WARPS - 1) / WARPS;
    int first = warp * each, last = min(first + each, chunks);
    uint32_t sum = 0;
    if (has) {
#pragma unroll 8
        for (int chunk = first; chunk < last; chunk++) sum += counts[int64_t(chunk) * experts + expert];
    }
    sums[warp * 32 + lane] = sum;
    sync_block();
    uint32_t next = 0, total = 0;
    for (int w = 0; w < WARPS; w++) {
        uint32_t of_warp = sums[w * 32 + lane];
        if (w < warp) next += of_warp;
        total += of_warp;
    }
    if (!has) return;
    for (int chunk = first; chunk < last; chunk++) {
        int64_t at = int64_t(chunk) * experts + expert;
        uint32_t count = counts[at];
        counts[at] = next;
        next += count;
    }
    if (warp == 0) totals[expert] = total;
}
KERNEL(moe_scan)

// offsets[e] is the first row of expert e, offsets[experts] their number. tiles[2 i] and [2 i + 1] are the expert and the first
// row of tile i, in the order of rows; tile_offsets[e] is the first tile of expert e, tile_offsets[experts] their number. An
// expert without rows has no tile.
extern "C" __global__ void __launch_bounds__(1024)
    moe_offsets(global<const uint32_t> totals, int experts, int tile_rows, global<uint32_t> offsets, global<uint32_t> tiles,
                global<uint32_t> tile_offsets) {
    SHARED(uint32_t, row_sums, 32);
    SHARED(uint32_t, tile_sums, 32);
    int expert = int(threadIdx.x);
    uint32_t rows = expert < experts ? uint32_t(totals[expert]) : 0;
    uint32_t own_tiles = (rows + uint32_t(tile_rows) - 1) / uint32_t(tile_rows);
    uint32_t first = before(rows, row_sums);
    uint32_t first_tile = before(own_tiles, tile_sums);
    if (expert < experts) {
        offsets[expert] = first;
        tile_offsets[expert] = first_tile;
    }
    if (expert == experts - 1) {
        offsets[experts] = first + rows;
        tile_offsets[experts] = first_tile + own_tiles;
    }
    for (uint32_t tile = 0; tile < own_tiles; tile++) {
        store(tiles + 2 * (first_tile + tile), make_uint2(uint32_t(expert), first + tile * uint32_t(tile_rows)));
    }
}
KERNEL(moe_offsets)

// counts[expert] += its rows.
extern "C" __global__ void __launch_bounds__(256) moe_add_counts(global<const uint32_t> offsets, int experts, global<uint32_t> counts) {
    int expert = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (expert < experts) counts[expert] += offsets[expert + 1] - offsets[expert];
}
KERNEL(moe_add_counts)

// slots[row] is the slot of a row, rows[slot] the row of a slot. A block has a chunk, a warp 8 tokens of it.
extern "C" __global__ void __launch_bounds__(256)
    moe_place(global<const uint32_t> chosen, global<const uint32_t> counts, global<const uint32_t> offsets, int tokens,
              int experts, int per_token, global<uint32_t> slots, global<uint32_t> rows) {
    DYNAMIC_SHARED(uint32_t, next);
    int lane = threadIdx.x % 32, warp = int(threadIdx.x) / 32;
    shared<uint32_t> own = next + warp * experts;
    int first_token = int(blockIdx.x) * CHUNK + warp * TOKENS;
    int first = min(first_token, tokens) * per_token, last = min(first_token + TOKENS, tokens) * per_token;
    for (int i = threadIdx.x; i < WARPS * experts; i += blockDim.x) next[i] = 0;
    sync_block();
    for (int slot = first + lane; slot < last; slot += 32) atomic_add(&own[chosen[slot]], 1u);
    sync_block();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        uint32_t at = offsets[expert] + counts[int64_t(blockIdx.x) * experts + expert];
        for (int w = 0; w < WARPS; w++) {
            uint32_t count = next[w * experts + expert];
            next[w * experts + expert] = at;
            at += count;
        }
    }
    sync_block();
    for (int base = first; base < last; base += 32) {
        int slot = base + lane;
        bool has = slot < last;
        int expert = has ? int(chosen[slot]) : EXPERTS;
        unsigned same = 0xffffffffu;
#pragma unroll
        for (int bit = 0; bit < BITS; bit++) {
            unsigned set = votes((expert >> bit) & 1);
            same &= (expert >> bit) & 1 ? set : ~set;
        }
        int rank = count_ones(same & ((1u << lane) - 1));
        uint32_t row = has ? own[expert] + uint32_t(rank) : 0;
        sync_warp();
        if (has && rank == 0) own[expert] += uint32_t(count_ones(same));
        if (has) {
            slots[row] = uint32_t(slot);
            rows[slot] = row;
        }
        sync_warp();
    }
}
KERNEL(moe_place)
