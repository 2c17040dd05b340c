// Rows of a table by their numbers: one read of the rows that are wanted, one write.
#include "rows.h"

namespace {

template <int V, int WARPS>
DEVICE void gather(global<const bf16> table, global<const uint32_t> ids, global<bf16> out, int rows, int width) {
    const Row<V, WARPS> row(rows, width);
    if (!row.width) return;
    Packed<V> values[PIECES];
    row.read_at(table + uint64_t(ids[row.row]) * width, values);
    row.write(out, values);
}

}  // namespace

#define GATHER(bounds, name, V, WARPS)                                                                                \
    extern "C" __global__ void bounds name(global<const bf16> table, global<const uint32_t> ids, global<bf16> out,    \
                                           int rows, int width) {                                                     \
        gather<V, WARPS>(table, ids, out, rows, width);                                                               \
    }

GATHER(SHORT_ROWS, embedding_gather_short, 8, 2)
KERNEL(embedding_gather_short)
GATHER(LONG_ROWS, embedding_gather_long, 8, 8)
KERNEL(embedding_gather_long)
GATHER(ANY_ROWS, embedding_gather_any, 1, 32)
KERNEL(embedding_gather_any)
