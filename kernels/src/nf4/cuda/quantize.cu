// Values to NF4 and to the 8 bits of double quantisation, with the roundings of the processor's side, bit by bit.
//
// Codes: 8 lanes of 8 values are a block, whose greatest magnitude they find by shuffles; then each value is held against the 15
// midpoints, some 35 instructions a value in all. That is what it waits for: 6 values in a nanosecond of each multiprocessor,
// over 1 TB/s of bf16 on a large card, where weights come from a disk or a network.
//
// The mean of the scales adds in PyTorch's order: 32 columns of sums, in which every `step` rows are summed from 0 on before they
// move up. These groups depend on nothing else, so each is a warp's; the sums above are one warp's, a step-th of the values.
#include "nf4.h"

namespace {

DEVICE uint32_t magnitude(float value) { return float_bits(value) & 0x7fffffffu; }

DEVICE float value_of(bf16 value) { return to_float(value); }
DEVICE float value_of(float value) { return value; }

DEVICE void eight(float (&to)[8], global<const bf16> from) {
    uint4 pairs = load_once<uint4>(from);
    uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = low(words[i]);
        to[2 * i + 1] = high(words[i]);
    }
}

DEVICE void eight(float (&to)[8], global<const float> from) {
    float4 first = load_once<float4>(from), second = load_once<float4>(from + 4);
    float values[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = values[i];
}

DEVICE uint32_t code_of(float scaled) {
    uint32_t code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) code += scaled > (nf4::CODE[i] + nf4::CODE[i + 1]) / 2.0f;
    return code;
}

// `damaged` counts blocks with a value that is not finite. `aligned`: values begin at a multiple of 16 bytes.
template <class V>
DEVICE void quantize(global<const V> values, uint64_t count, int aligned, global<uint8_t> packed, global<float> absmax,
                     global<uint32_t> damaged) {
    uint64_t step = uint64_t(gridDim.x) * blockDim.x, first = uint64_t(blockIdx.x) * blockDim.x;
    // Whole warps take part in shuffles.
    for (uint64_t warp = first + threadIdx.x / 32 * 32; warp * 8 < count; warp += step) {
        uint64_t at = (warp + threadIdx.x % 32) * 8;
        float own[8];
        if (aligned && at + 8 <= count) {
            eight(own, values + at);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) own[i] = at + i < count ? value_of(values[at + i]) : 0.0f;
        }
        uint32_t greatest = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) greatest = max(greatest, magnitude(own[i]));
#pragma unroll
        for (int by = 1; by < 8; by *= 2) greatest = max(greatest, shuffle_xor(greatest, by));
        if (at >= count) continue;
        float scale = bits_float(greatest), divisor = fmaxf(scale, 1e-38f), reciprocal = 1.0f / divisor;
        uint64_t block = at / nf4::BLOCK;
        bool whole = (block + 1) * nf4::BLOCK <= count;
        uint32_t codes = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            // A shorter block divides.
            float scaled = whole ? multiply(own[i], reciprocal) : own[i] / divisor;
            codes |= code_of(scaled) << (8 * (i / 2) + (i % 2 ? 0 : 4));
        }
        if (at + 8 <= count) {
            store(packed + at / 2, codes);
        } else {
            for (uint64_t byte = 0; at + 2 * byte < count; byte++) packed[at / 2 + byte] = uint8_t(codes >> 8 * byte);
        }
        if (at % nf4::BLOCK == 0) {
            absmax[block] = scale;
            if (greatest >= 0x7f800000u) atomic_add(&damaged[0], 1u);
        }
    }
}

// PyTorch's columns of sums.
constexpr int WIDTH = 32;

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    nf4_quantize_bf16(global<const bf16> values, uint64_t count, int aligned, global<uint8_t> packed, global<float> absmax,
                      global<uint32_t> damaged) {
    quantize(values, count, aligned, packed, absmax, damaged);
}
KERNEL(nf4_quantize_bf16)

extern "C" __global__ void __launch_bounds__(256)
    nf4_quantize_f32(global<const float> values, uint64_t count, int aligned, global<uint8_t> packed, global<float> absmax,
                     global<uint32_t> damaged) {
    quantize(values, count, aligned, packed, absmax, damaged);
}
KERNEL(nf4_quantize_f32)

// sums[group, column]: `step` rows of 32 values each, and in the last group what is left of them.
extern "C" __global__ void __launch_bounds__(256)
    nf4_mean_groups(global<const float> values, int rows, int step, global<float> sums) {
    int warps = int(gridDim.x * blockDim.x) / 32, lane = int(threadIdx.x) % 32;
    for (int group = int(blockIdx.x * blockDim.x + threadIdx.x) / 32; group * step < rows; group += warps) {
        float sum = 0;
        for (int row = group * step; row < min(rows, group * step + step); row++) sum = add(sum, values[int64_t(row) * WIDTH + lane]);
        sums[int64_t(group) * WIDTH + lane] = sum;
    }
}
KERNEL(nf4_mean_groups)

// The mean of the values out of the sums of their groups, 2^power rows each. One warp, a lane for each column of sums.
extern "C" __global__ void __launch_bounds__(32)
    nf4_mean(global<const float> values, int count, int power, global<const float> sums, global<float> mean) {
    SHARED(float, columns, WIDTH);
    int lane = int(threadIdx.x), rows = count / WIDTH, groups = rows >> power, mask = (1 << power) - 1;
    float levels[3] = {0, 0, 0};
    for (int group = 1; group <= groups; group++) {
        // A full level moves up; the last one never does.
        levels[0] = add(levels[0], sums[int64_t(group - 1) * WIDTH + lane]);
        if ((group & mask) != 0) continue;
        levels[1] = add(levels[1], levels[0]);
        levels[0] = 0;
        if ((group >> power & mask) != 0) continue;
        levels[2] = add(levels[2], levels[1]);
        levels[1] = 0;
    }
    float left = (rows & mask) != 0 ? sums[int64_t(groups) * WIDTH + lane] : 0.0f;
    columns[lane] = add(add(add(left, levels[0]), levels[1]), levels[2]);
    sync_block();
    if (lane != 0) return;
    float total = 0;
    if (count < 8) {
        // Lanes of one value: four sums, and what is left is added to the first.
        float few[4];
        for (int i = 0; i < 4; i++) few[i] = count >= 4 ? values[i] : 0.0f;
        for (int i = count / 4 * 4; i < count; i++) few[0] = add(few[0], values[i]);
        total = add(add(add(few[0], few[1]), few[2]), few[3]);
    } else {
        // What is left of a row, by vectors of 8 and then one by one.
        int at = rows * WIDTH;
        for (; at + 8 <= count; at += 8) {
            for (int i = 0; i < 8; i++) columns[i] += values[at + i];
        }
        for (; at < count; at++) total = add(total, values[at]);
        for (int i = 0; i < 8; i++) {
            total = add(total, add(add(add(columns[i], columns[8 + i]), columns[16 + i]), columns[24 + i]));
        }
    }
    mean[0] = total / float(count);
}
KERNEL(nf4_mean)

// The scales in 8 bits, around their mean: a block of threads is one nested block. `limits[i]` is the greatest value that is not
// nearer to code i + 1 than to code i.
extern "C" __global__ void __launch_bounds__(256)
    nf4_nested(global<const float> absmax, int count, global<const float> mean, global<const float> limits, global<uint8_t> codes,
               global<float> nested) {
    SHARED(float, bounds, 256);
    SHARED(uint32_t, parts, 8);
    int own = int(threadIdx.x), at = int(blockIdx.x) * nf4::NESTED_BLOCK + own;
    bounds[own] = limits[own];
    float centred = at < count ? add(absmax[at], -mean[0]) : 0.0f;
    uint32_t greatest = magnitude(centred);
#pragma unroll
    for (int by = 1; by < 32; by *= 2) greatest = max(greatest, shuffle_xor(greatest, by));
    if (own % 32 == 0) parts[own / 32] = greatest;
    sync_block();
    for (int i = 0; i < 8; i++) greatest = max(greatest, uint32_t(parts[i]));
    float scale = bits_float(greatest);
    if (own == 0) nested[blockIdx.x] = scale;
    if (at >= count) return;
    float reciprocal = 1.0f / scale;
    // A tiny scale has no finite reciprocal.
    float value = magnitude(reciprocal) < 0x7f800000u ? multiply(centred, reciprocal) : centred / scale;
    value = fminf(fmaxf(value, -1.0f), 1.0f);
    int code = 0;
#pragma unroll
    for (int by = 128; by > 0; by /= 2) code += value > bounds[code + by - 1] ? by : 0;
    codes[at] = scale == 0.0f ? 0 : uint8_t(code);
}
KERNEL(nf4_nested)
