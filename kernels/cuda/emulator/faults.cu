// Kernels that are wrong, each in one way, and the right ones beside them: what the emulator is tested with.
#include "device.h"

#ifndef __CUDACC__

static void scale(global<const float> x, global<float> y, int count, float by) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = x[i] * by;
}
KERNEL(scale)

static void sum(global<const float> x, global<float> y, int count) {
    SHARED(float, part, 32);
    float own = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) own += x[i];
    for (int by = 16; by > 0; by /= 2) own += shuffle_xor(own, by);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = own;
    sync_block();
    if (threadIdx.x != 0) return;
    float all = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) all += part[warp];
    y[0] = all;
}
KERNEL(sum)

static void without_barrier(global<const float> x, global<float> y) {
    SHARED(float, turn, 1024);
    turn[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = turn[(threadIdx.x + 1) % blockDim.x];
}
KERNEL(without_barrier)

static void written_after_read(global<const float> x, global<float> y) {
    SHARED(float, turn, 1024);
    turn[threadIdx.x] = x[threadIdx.x];
    sync_block();
    y[threadIdx.x] = turn[(threadIdx.x + 1) % blockDim.x];
    turn[threadIdx.x] = 0;
}
KERNEL(written_after_read)

static void across_warps(global<const float> x, global<float> y) {
    SHARED(float, turn, 1024);
    turn[threadIdx.x] = x[threadIdx.x];
    sync_warp();
    y[threadIdx.x] = turn[(threadIdx.x + 32) % blockDim.x];
}
KERNEL(across_warps)

static void within_warps(global<const float> x, global<float> y) {
    SHARED(float, turn, 1024);
    turn[threadIdx.x] = x[threadIdx.x];
    sync_warp();
    y[threadIdx.x] = turn[threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32];
}
KERNEL(within_warps)

static void same_place_from_two_blocks(global<const float> x, global<float> y) { y[threadIdx.x] = x[threadIdx.x]; }
KERNEL(same_place_from_two_blocks)

static void never_written(global<const float>, global<float> y) {
    SHARED(float, empty, 32);
    y[threadIdx.x] = empty[threadIdx.x % 32];
}
KERNEL(never_written)

static void divergent(global<const float> x, global<float> y) {
    if (threadIdx.x % 32 < 16) {
        sync_block();
    } else {
        sync_warp();
    }
    y[threadIdx.x] = x[threadIdx.x];
}
KERNEL(divergent)

static void different_operations(global<const float> x, global<float> y) {
    float value = x[threadIdx.x];
    y[threadIdx.x] = threadIdx.x % 2 ? shuffle(value, 0) : float(votes(true));
}
KERNEL(different_operations)

static void misaligned(global<const float> x, global<float> y) { y[threadIdx.x] = load<float4>(x + 1 + threadIdx.x * 4).x; }
KERNEL(misaligned)

static void not_waited_for(global<const float> x, global<float> y) {
    DYNAMIC_SHARED(float, copied);
    copy_async(copied + threadIdx.x * 4, x + threadIdx.x * 4);
    commit_async();
    y[threadIdx.x] = copied[threadIdx.x * 4];
}
KERNEL(not_waited_for)

static void waited_for(global<const float> x, global<float> y) {
    DYNAMIC_SHARED(float, copied);
    copy_async(copied + threadIdx.x * 4, x + threadIdx.x * 4);
    commit_async();
    wait_async<0>();
    sync_block();
    y[threadIdx.x] = copied[(threadIdx.x * 4 + 4) % (blockDim.x * 4)];
}
KERNEL(waited_for)

// D = A B of 16 x 16 and 16 x 8, both read from shared memory as the hardware would.
static void product(global<const bf16> a, global<const bf16> b, global<float> d) {
    SHARED(bf16, rows, 16 * 16);
    SHARED(bf16, columns, 16 * 8);
    for (int i = threadIdx.x; i < 256; i += 32) rows[i] = a[i];
    for (int i = threadIdx.x; i < 128; i += 32) columns[i] = b[i];
    sync_warp();
    uint32_t of_a[4], of_b[4];
    int lane = threadIdx.x, matrix = lane / 8, row = lane % 8;
    load_matrix(of_a, rows + (row + 8 * (matrix % 2)) * 16 + 8 * (matrix / 2));
    load_matrix_transposed(of_b, columns + (row + 8 * (matrix % 2)) * 8);
    uint32_t two[2] = {of_b[0], of_b[1]};
    float sums[4] = {0, 0, 0, 0};
    mma_bf16(sums, of_a, two);
    for (int i = 0; i < 4; i++) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sums[i];
}
KERNEL(product)

// The same, 8 columns of A at a time, as tf32.
static void product_tf32(global<const bf16> a, global<const bf16> b, global<float> d) {
    int group = threadIdx.x / 4, place = threadIdx.x % 4;
    float sums[4] = {0, 0, 0, 0};
    for (int k = 0; k < 16; k += 8) {
        uint32_t of_a[4], of_b[2];
        for (int r = 0; r < 4; r++) of_a[r] = to_tf32(to_float(a[(group + 8 * (r % 2)) * 16 + k + place + 4 * (r / 2)]));
        for (int r = 0; r < 2; r++) of_b[r] = to_tf32(to_float(b[(k + place + 4 * r) * 8 + group]));
        mma_tf32(sums, of_a, of_b);
    }
    for (int i = 0; i < 4; i++) d[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2] = sums[i];
}
KERNEL(product_tf32)

// D = A B of 64 x 64 and 64 x 128, as a warpgroup multiplies: B has k along its rows or across. What is left out is wrong.
enum Omitted { NOTHING, OPERAND_FENCE, SUMS_FENCE, WAIT, WAIT_BEFORE_WRITING, ALIGNMENT };
template <bool ACROSS, Omitted OMITTED>
static void product_of_warpgroup(global<const bf16> a, global<const bf16> b, global<float> d) {
    ALIGNED_SHARED(bf16, tiles);
    auto of_a = tiles, of_b = tiles + 64 * 64;
    for (int i = threadIdx.x; i < 64 * 64; i += blockDim.x) of_a[i / 64 * 64 + (i % 64 / 8 ^ i / 64 % 8) * 8 + i % 8] = a[i];
    for (int i = threadIdx.x; i < 64 * 128; i += blockDim.x) {
        int k = i / 128, n = i % 128, row = ACROSS ? n / 64 * 64 + k : n, column = ACROSS ? n % 64 : k;
        of_b[row * 64 + (column / 8 ^ row % 8) * 8 + column % 8] = b[i];
    }
    if (OMITTED != OPERAND_FENCE) fence_async_proxy();
    sync_block();
    float sums[16][4] = {};
    if (OMITTED != SUMS_FENCE) wgmma_fence();
    Matrix left = Matrix::along(of_a + (OMITTED == ALIGNMENT ? 64 : 0)), right = ACROSS ? Matrix::across(of_b, 64 * 128) : Matrix::along(of_b);
    for (int step = 0; step < 4; step++) wgmma_bf16<ACROSS>(sums, left.behind(32 * step), right.behind((ACROSS ? 2048 : 32) * step));
    wgmma_commit();
    if (OMITTED == WAIT_BEFORE_WRITING) of_a[threadIdx.x] = bf16{0};
    if (OMITTED == WAIT) sums[0][0] += 1;
    wgmma_wait<0>();
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 64; i++) d[(row + 8 * (i / 2 % 2)) * 128 + i / 4 * 8 + column + i % 2] = sums[i / 4][i % 4];
}

#define PRODUCT_OF_WARPGROUP(name, across, omitted)                                                 \
    static void warpgroup_##name(global<const bf16> a, global<const bf16> b, global<float> d) {      \
        product_of_warpgroup<across, omitted>(a, b, d);                                              \
    }                                                                                                \
    KERNEL(warpgroup_##name)
PRODUCT_OF_WARPGROUP(along, false, NOTHING)
PRODUCT_OF_WARPGROUP(across, true, NOTHING)
PRODUCT_OF_WARPGROUP(unfenced_operands, false, OPERAND_FENCE)
PRODUCT_OF_WARPGROUP(unfenced_sums, false, SUMS_FENCE)
PRODUCT_OF_WARPGROUP(not_waited_for, false, WAIT)
PRODUCT_OF_WARPGROUP(overwritten, false, WAIT_BEFORE_WRITING)
PRODUCT_OF_WARPGROUP(misaligned, false, ALIGNMENT)

#endif
