// One optimiser step of all tensors, with the roundings of cpu.rs: the same bits.
//
// Memory sets the pace. A value costs 28 bytes (32-bit moments: p, g, m, v read, p, m, v written) or 16 (8-bit), 2 for the bf16
// copy that products read, and 4 for the zero that its gradient becomes: all of it in this one pass. A warp steps a unit of 256
// values, which is a block of the 8-bit moments, so that their scales are found by shuffles and no warp waits for another. A
// lane has 4 values at 4·lane and 4 at 128 + 4·lane: every load and store of a warp is one stretch without a gap (512 bytes of
// f32, 256 of bf16, 128 of codes), and all loads of a unit are on their way together.
//
// 8-bit codes are searched as on the CPU: a bucket by exponent and 7 bits of the mantissa, then one comparison. The tables lie in
// shared memory; a value takes 6 look-ups there, a bit more than half of the time that its bytes take.
#include "tensor_list.h"

namespace {

constexpr int UNIT = 256;
constexpr int WARPS = 8;
constexpr int FIELDS = 6;

// The tables of both maps as the host lays them out: codes, limits and buckets.
constexpr int BUCKETS = 23 * 128 + 1;
constexpr uint32_t SMALLEST = (127 - 23) << 7;
constexpr int SIGNED_CODES = 0, UNSIGNED_CODES = 1024, SIGNED_LIMITS = 2048, UNSIGNED_LIMITS = 3072;
constexpr int SIGNED_BUCKETS = 4096, UNSIGNED_BUCKETS = SIGNED_BUCKETS + 5904, MAPS = UNSIGNED_BUCKETS + 2960;

DEVICE int lane() { return int(threadIdx.x % 32); }

// What is the same for all tensors in all steps.
struct Method {
    float lerp, beta2, gain2, epsilon;
    bool from_gradient;

    static DEVICE Method of(global<const float> from) { return {from[0], from[1], from[2], from[3], from[4] != 0.0f}; }
};

// What `adamw_prepare` has left for a tensor.
struct Rates {
    float step_size, root_correction2, decay;
};

DEVICE void update(float& parameter, float gradient, float& m, float& v, const Method& method, const Rates& rates) {
    float base = method.from_gradient ? gradient : m;
    m = fused(method.lerp, add(gradient, -m), base);
    v = fused(multiply(gradient, method.gain2), gradient, multiply(v, method.beta2));
    float denominator = add(divide(square_root(v), rates.root_correction2), method.epsilon);
    parameter = add(multiply(parameter, rates.decay), divide(multiply(rates.step_size, m), denominator));
}

// 32 bits a value. Every tensor has whole units of moments, the last one with room to spare.
struct Full {
    global<float> m, v;

    DEVICE void load(float (&m_values)[8], float (&v_values)[8], uint64_t unit, int count) const {
        uint64_t base = unit * UNIT;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = half * 128 + 4 * lane();
            float four[4];
            load_four(four, m + base, at, count, true);
#pragma unroll
            for (int i = 0; i < 4; i++) m_values[4 * half + i] = four[i];
            load_four(four, v + base, at, count, true);
#pragma unroll
            for (int i = 0; i < 4; i++) v_values[4 * half + i] = four[i];
        }
    }

    DEVICE void store(const float (&m_values)[8], const float (&v_values)[8], uint64_t unit, int count) const {
        uint64_t base = unit * UNIT;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = half * 128 + 4 * lane();
            const float m_four[4] = {m_values[4 * half], m_values[4 * half + 1], m_values[4 * half + 2], m_values[4 * half + 3]};
            const float v_four[4] = {v_values[4 * half], v_values[4 * half + 1], v_values[4 * half + 2], v_values[4 * half + 3]};
            store_four(m + base, m_four, at, count, true);
            store_four(v + base, v_four, at, count, true);
        }
    }
};

// Codes of a dynamic map, and a scale for each unit.
template <bool SIGNED> struct Codes {
    global<uint8_t> codes;
    global<float> scales;
    shared<uint8_t> maps;

    DEVICE void load(float (&values)[8], uint64_t unit, int count) const {
        shared<float> map = as<float>(maps + (SIGNED ? SIGNED_CODES : UNSIGNED_CODES));
        float scale = scales[unit];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = half * 128 + 4 * lane();
            uint32_t four = 0;
            if (at + 4 <= count) {
                four = ::load<uint32_t>(codes + unit * UNIT + at);
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (at + i < count) four |= uint32_t(codes[unit * UNIT + at + i]) << (8 * i);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // What lies beyond the end has no part in the scale.
                values[4 * half + i] = at + i < count ? multiply(map[(four >> (8 * i)) & 255], scale) : 0.0f;
            }
        }
    }

    // The nearest code; of a tie the lower one.
    DEVICE uint32_t nearest(float value) const {
        shared<uint8_t> buckets = maps + (SIGNED ? SIGNED_BUCKETS : UNSIGNED_BUCKETS);
        shared<float> limits = as<float>(maps + (SIGNED ? SIGNED_LIMITS : UNSIGNED_LIMITS));
        uint32_t bits = float_bits(value), magnitude = (bits & 0x7fffffffu) >> 16;
        uint32_t place = min(magnitude > SMALLEST ? magnitude - SMALLEST : 0u, uint32_t(BUCKETS - 1));
        if (SIGNED && bits >> 31) place += BUCKETS;
        uint32_t code = buckets[place];
        return code + (value > limits[code] ? 1u : 0u);
    }

    DEVICE void store(const float (&values)[8], uint64_t unit, int count) const {
        // The bits of magnitudes sort like the magnitudes, and what is not finite sorts above: it cannot hide.
        uint32_t greatest = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int at = i / 4 * 128 + 4 * lane() + i % 4;
            if (at < count) greatest = max(greatest, float_bits(values[i]) & 0x7fffffffu);
        }
#pragma unroll
        for (int by = 16; by > 0; by /= 2) greatest = max(greatest, shuffle_xor(greatest, by));
        float scale = bits_float(greatest), divisor = greatest == 0 ? 1.0f : scale;
        sync_warp();  // all lanes have read the old one
        if (lane() == 0) scales[unit] = scale;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = half * 128 + 4 * lane();
            uint32_t four = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float value = values[4 * half + i];
                uint32_t code = nearest(divide(value, divisor));
                // A second moment above 0 never becomes 0.
                if (!SIGNED && value > 0.0f) code = max(code, 1u);
                four |= code << (8 * i);
            }
            if (at + 4 <= count) {
                ::store(codes + unit * UNIT + at, four);
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (at + i < count) codes[unit * UNIT + at + i] = uint8_t(four >> (8 * i));
                }
            }
        }
    }
};

struct Blockwise {
    Codes<true> m;
    Codes<false> v;

    DEVICE void load(float (&m_values)[8], float (&v_values)[8], uint64_t unit, int count) const {
        m.load(m_values, unit, count);
        v.load(v_values, unit, count);
    }

    DEVICE void store(const float (&m_values)[8], const float (&v_values)[8], uint64_t unit, int count) const {
        m.store(m_values, unit, count);
        v.store(v_values, unit, count);
    }
};

DEVICE void store_copy(global<bf16> copy, const float (&values)[4], int at, int count, bool wide) {
    if (wide && at + 4 <= count) {
        store(copy + at, make_uint2(pack(values[0], values[1]), pack(values[2], values[3])));
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < count) copy[at + i] = to_bf16(values[i]);
        }
    }
}

// One tensor as `table` has it.
struct Tensor {
    global<float> parameter, gradient;
    global<bf16> copy;
    uint64_t count;
    bool wide;

    DEVICE void read(global<const uint64_t> table, int tensor) {
        uint64_t at = uint64_t(tensor) * FIELDS, parameters = table[at], gradients = table[at + 1], copies = table[at + 2];
        parameter = at_address<float>(parameters);
        gradient = at_address<float>(gradients);
        copy = copies ? at_address<bf16>(copies) : global<bf16>();
        count = table[at + 3];
        wide = (parameters % 16 | gradients % 16 | copies % 8) == 0;
    }

    // Values of a unit that begins there.
    DEVICE int left(uint64_t offset) const { return int(min(count - offset, uint64_t(UNIT))); }
};

struct Step {
    Method method;
    float gradient_scale;
    int clear;
};

template <class Moments>
DEVICE void step_unit(const Tensor& tensor, const Moments& moments, uint64_t unit, uint64_t offset, const Step& step, const Rates& rates) {
    int count = tensor.left(offset);
    float parameter[2][4], gradient[2][4], m[8], v[8];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        load_four(parameter[half], tensor.parameter + offset, half * 128 + 4 * lane(), count, tensor.wide);
        load_four(gradient[half], tensor.gradient + offset, half * 128 + 4 * lane(), count, tensor.wide);
    }
    moments.load(m, v, unit, count);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        update(parameter[i / 4][i % 4], multiply(gradient[i / 4][i % 4], step.gradient_scale), m[i], v[i], step.method, rates);
    }
    moments.store(m, v, unit, count);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int at = half * 128 + 4 * lane();
        store_four(tensor.parameter + offset, parameter[half], at, count, tensor.wide);
        if (tensor.copy) store_copy(tensor.copy + offset, parameter[half], at, count, tensor.wide);
        const float zeros[4] = {};
        if (step.clear) store_four(tensor.gradient + offset, zeros, at, count, tensor.wide);
    }
}

// A block takes `share` units in a row, its warps one after another: `begin` reads a tensor, and `each` has one of its units and
// where that begins in it.
template <class Begin, class Each>
DEVICE void for_units(global<const uint32_t> first, int tensors, uint32_t share, Begin begin, Each each) {
    uint32_t units = first[tensors], from = blockIdx.x * share;
    uint32_t end = min(units, from + share), unit = from + threadIdx.x / 32;
    if (unit >= end) return;
    TensorCursor cursor{first, 0, 0, 0};
    cursor.find(unit, tensors);
    for (bool another = true; unit < end; unit += WARPS, another = unit < end && cursor.go_on(unit)) {
        if (another) begin(cursor.tensor);
        each(unit, uint64_t(unit - cursor.begin) * UNIT);
    }
}

template <class Moments>
DEVICE void step_all(global<const uint64_t> table, global<const uint32_t> first, int tensors, global<const float> prepared,
                     const Moments& moments, const Step& step, uint32_t share) {
    Tensor tensor;
    float4 rates = {};
    auto begin = [&](int number) {
        tensor.read(table, number);
        rates = load<float4>(prepared + 4 * number);
    };
    for_units(first, tensors, share, begin, [&](uint32_t unit, uint64_t offset) {
        if (rates.w != 0.0f) step_unit(tensor, moments, unit, offset, step, {rates.x, rates.y, rates.z});
    });
}

}  // namespace

// Which tensors take this step, and how far: for each of them step size, root of the second correction, decay, and 1 if it takes
// it. Nobody does where the factor of the gradients is no number; one whose rows were counted does if it had some.
//   corrections   for each number of updates 1 - beta1^t (f64) and the root of 1 - beta2^t (f32), until both are 1
//   rates         for each kind of tensor the learning rate (f64) and the decay (f32)
extern "C" __global__ void __launch_bounds__(256)
    adamw_prepare(global<const uint64_t> table, int tensors, global<const uint64_t> corrections, int known,
                  global<const uint64_t> rates, global<const float> factor, global<uint64_t> updates, global<float> prepared) {
    int tensor = blockIdx.x * blockDim.x + threadIdx.x;
    if (tensor >= tensors) return;
    uint64_t hits = table[uint64_t(tensor) * FIELDS + 4], kind = table[uint64_t(tensor) * FIELDS + 5];
    // The difference of what is no number, or infinite, with itself is not 0.
    bool takes = factor[0] - factor[0] == 0.0f && (hits == 0 || at_address<const uint32_t>(hits)[0] != 0);
    uint64_t update = updates[tensor] + 1;
    if (takes) updates[tensor] = update;
    uint64_t at = 2 * min(update, uint64_t(known));
    float step_size = float(-as_double(rates[2 * kind]) / as_double(corrections[at]));
    store(prepared + 4 * tensor, make_float4(step_size, bits_float(uint32_t(corrections[at + 1])),
                                             bits_float(uint32_t(rates[2 * kind + 1])), takes ? 1.0f : 0.0f));
}
KERNEL(adamw_prepare)

extern "C" __global__ void __launch_bounds__(256)
    adamw_full(global<const uint64_t> table, global<const uint32_t> first, int tensors, global<const float> prepared,
               global<const float> factor, global<const float> method, global<float> m, global<float> v, int clear,
               uint32_t share) {
    Step step{Method::of(method), factor[0], clear};
    step_all(table, first, tensors, prepared, Full{m, v}, step, share);
}
KERNEL(adamw_full)

extern "C" __global__ void __launch_bounds__(256, 3)
    adamw_blockwise(global<const uint64_t> table, global<const uint32_t> first, int tensors, global<const float> prepared,
                    global<const float> factor, global<const float> method, global<const uint8_t> tables, global<uint8_t> m,
                    global<float> m_scale, global<uint8_t> v, global<float> v_scale, int clear, uint32_t share) {
    SHARED(uint8_t, maps, MAPS);
    for (int at = 16 * threadIdx.x; at < MAPS; at += 16 * blockDim.x) store(maps + at, load<uint4>(tables + at));
    sync_block();
    Step step{Method::of(method), factor[0], clear};
    step_all(table, first, tensors, prepared, Blockwise{{m, m_scale, maps}, {v, v_scale, maps}}, step, share);
}
KERNEL(adamw_blockwise)

// Only the bf16 copies of all parameters.
extern "C" __global__ void __launch_bounds__(256)
    adamw_copies(global<const uint64_t> table, global<const uint32_t> first, int tensors, uint32_t share) {
    Tensor tensor;
    auto begin = [&](int number) { tensor.read(table, number); };
    for_units(first, tensors, share, begin, [&](uint32_t, uint64_t offset) {
        if (!tensor.copy) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = half * 128 + 4 * lane();
            float four[4];
            load_four(four, tensor.parameter + offset, at, tensor.left(offset), tensor.wide);
            store_copy(tensor.copy + offset, four, at, tensor.left(offset), tensor.wide);
        }
    });
}
KERNEL(adamw_copies)
