// The norm of all gradients together, and the factor that clips it, without the host.
//
// Sums are in f64, whose range has the square of every f32 in it. A warp adds up a unit of 4096 values: 4 a lane and load, so
// that a warp's load is 512 bytes in a row and 8 of them are on their way at once. All there is to do is keep memory busy: 4 bytes
// and one multiply-add in f64 a value, for which even the cards with two units for f64 in a multiprocessor have the time. Every
// unit leaves its sum, and one block adds those up in one fixed order, which depends on the lengths alone. A block for that is
// enough: 3 billion values leave 6 MB.
#include "tensor_list.h"

namespace {

constexpr int UNIT = 4096;
constexpr int AT_ONCE = 8;
constexpr int WARPS = 8;
constexpr int FINISHERS = 1024;
// Keeps the factor of a vanishing norm finite (PyTorch's constant).
constexpr double EPSILON = 1e-6;

DEVICE double warp_sum(double value) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) value += shuffle_xor(value, by);
    return value;
}

DEVICE double unit_sum(global<const float> values, int count, bool wide) {
    double sum = 0.0;
    for (int base = 0; base < count; base += AT_ONCE * 128) {
        float four[AT_ONCE][4];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            load_four(four[i], values, base + i * 128 + 4 * int(threadIdx.x % 32), count, wide);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sum += double(four[i][j]) * double(four[i][j]);
        }
    }
    return warp_sum(sum);
}

}  // namespace

// `table`: address and length of every gradient.
extern "C" __global__ void __launch_bounds__(256)
    grad_norm_units(global<const uint64_t> table, global<const uint32_t> first, int tensors, global<uint64_t> sums) {
    uint32_t units = first[tensors];
    uint32_t unit = blockIdx.x * WARPS + threadIdx.x / 32;
    if (unit >= units) return;
    TensorCursor cursor{first, 0, 0, 0};
    cursor.find(unit, tensors);
    uint64_t address = table[2 * cursor.tensor], offset = uint64_t(unit - cursor.begin) * UNIT;
    uint64_t left = table[2 * cursor.tensor + 1] - offset;
    double sum = unit_sum(at_address<const float>(address) + offset, int(min(left, uint64_t(UNIT))), address % 16 == 0);
    if (threadIdx.x % 32 == 0) as<double>(sums)[unit] = sum;
}
KERNEL(grad_norm_units)

// `max_norm`: the bits of an f64. `factor` is NaN where the norm is not finite.
extern "C" __global__ void __launch_bounds__(1024)
    grad_norm_finish(global<const uint64_t> sums, uint32_t units, uint64_t max_norm, global<uint64_t> norm, global<float> factor) {
    SHARED(double, warps, FINISHERS / 32);
    double sum = 0.0;
    for (uint32_t unit = threadIdx.x; unit < units; unit += FINISHERS) sum += as_double(sums[unit]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    sync_block();
    if (threadIdx.x >= 32) return;
    double total = sqrt(warp_sum(warps[threadIdx.x]));
    if (threadIdx.x != 0) return;
    as<double>(norm)[0] = total;
    double ratio = as_double(max_norm) / (total + EPSILON);
    // Neither infinity nor NaN is at most the largest number.
    bool finite = total <= 1.7976931348623157e308;
    factor[0] = finite ? float(ratio < 1.0 ? ratio : 1.0) : bits_float(0x7fc00000u);
}
KERNEL(grad_norm_finish)
