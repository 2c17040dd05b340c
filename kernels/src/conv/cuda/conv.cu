// Causal depthwise convolution with silu, straight from the grouped projection:
//   p[t] = Σ_back w[back] x[t - back],  y = silu(p);  dp = dy ⊙ silu'(p),  dx[t] = Σ_back w[back] dp[t + back]
// inside of t's document.
//
// Bound by memory: one read of q, k and v and one write; two reads backward. A thread has 8 channels (16 bytes) and walks a
// run of tokens with the last ones in registers, so that each value is read once, but for the 3 tokens before a run (and
// behind it, backward), which neighbours read at about the same time and the second-level cache has. The next tokens are
// under way while one is computed; some 110 and 200 instructions for 16 bytes of each, where the bandwidth of an H200
// leaves time for 200 and 300. Neighbouring threads have neighbouring channels; a document's border is the same for all
// threads of a warp.
#include "values.h"

namespace {

constexpr int TAPS = 4;
constexpr int BACK = TAPS - 1;
// Tokens under way: few enough that a multiprocessor has 16 warps.
constexpr int FORWARD_AHEAD = 4;
constexpr int BACKWARD_AHEAD = 2;

// The projection: groups of q | k | v | z, and the convolved channels q | k | v of all groups.
struct Layout {
    int key_heads, key_dim, group_values, group_width;

    DEVICE int channels() const { return key_heads * (2 * key_dim + group_values); }
    DEVICE int projection() const { return key_heads * group_width; }
    // Where the projection has a channel.
    DEVICE int source(int channel) const {
        int keys = key_heads * key_dim;
        if (channel < 2 * keys) {
            int second = channel >= keys, within = channel - second * keys;
            int group = unsigned(within) / unsigned(key_dim);
            return group * group_width + second * key_dim + (within - group * key_dim);
        }
        int within = channel - 2 * keys, group = unsigned(within) / unsigned(group_values);
        return group * group_width + 2 * key_dim + (within - group * group_values);
    }
};

// What a thread does: V channels, from one of them on, and the tokens of its run.
template <int V> struct Run {
    int channel, first, last;

    DEVICE Run(int tokens, int run) {
        channel = (int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x)) * V;
        first = int(blockIdx.y) * run;
        last = min(first + run, tokens);
    }
};

// weight[back][channel]
template <int V> DEVICE void load_taps(global<const float> weight, int channel, int channels, float (&w)[TAPS][V]) {
#pragma unroll
    for (int back = 0; back < TAPS; back++) load_floats<V>(weight + (back * channels + channel), w[back]);
}

// Values of the tokens before `first`, the last of them first; 0 where those are of another document.
template <int V>
DEVICE void load_before(global<const bf16> x, int width, int first, int start, Packed<V> (&before)[BACK]) {
#pragma unroll
    for (int back = 1; back <= BACK; back++) {
        bool inside = first - back >= start;
        before[back - 1] = inside ? load<Packed<V>>(x + int64_t(first - back) * width) : Packed<V>{};
    }
}

// A token's value; 0 behind the end.
template <int V> DEVICE Packed<V> load_token(global<const bf16> x, int width, int token, int end) {
    return token < end ? load<Packed<V>>(x + int64_t(token) * width) : Packed<V>{};
}

// How many tokens its document has had before a token.
DEVICE int load_age(global<const uint32_t> starts, int token, int end) { return token < end ? token - int(starts[token]) : 0; }

// Σ_back w[back] x[t - back] over as many tokens as the document has had before t; moves on by one token.
template <int V>
DEVICE void convolve(const float (&w)[TAPS][V], const Packed<V>& now, Packed<V> (&before)[BACK], int age, float (&p)[V]) {
    float x[V];
    widen(now, x);
#pragma unroll
    for (int k = 0; k < V; k++) p[k] = w[0][k] * x[k];
#pragma unroll
    for (int back = 1; back <= BACK; back++) {
        if (age < back) continue;
        widen(before[back - 1], x);
#pragma unroll
        for (int k = 0; k < V; k++) p[k] = fused(w[back][k], x[k], p[k]);
    }
#pragma unroll
    for (int back = BACK - 1; back > 0; back--) before[back] = before[back - 1];
    before[0] = now;
}

template <int V>
DEVICE void forward(global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts, global<bf16> y,
                    int tokens, int run_length, const Layout& layout) {
    const Run<V> run(tokens, run_length);
    int channels = layout.channels(), width = layout.projection();
    if (run.channel >= channels) return;
    global<const bf16> x = qkvz + layout.source(run.channel);
    constexpr int AHEAD = FORWARD_AHEAD;
    Packed<V> before[BACK], ahead[AHEAD];
    int ages[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        ahead[i] = load_token<V>(x, width, run.first + i, run.last);
        ages[i] = load_age(starts, run.first + i, run.last);
    }
    load_before<V>(x, width, run.first, run.first - ages[0], before);
    float w[TAPS][V];
    load_taps<V>(weight, run.channel, channels, w);
    for (int t = run.first; t < run.last; t += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int token = t + i, age = ages[i];
            Packed<V> now = ahead[i];
            ahead[i] = load_token<V>(x, width, token + AHEAD, run.last);
            ages[i] = load_age(starts, token + AHEAD, run.last);
            float p[V];
            convolve<V>(w, now, before, age, p);
#pragma unroll
            for (int k = 0; k < V; k++) p[k] *= sigmoid(p[k]);
            if (token < run.last) store(y + (int64_t(token) * channels + run.channel), narrow(p));
        }
    }
}

// dx of a run, while dp walks from its first token to 3 tokens behind its last: every dp is added to the gradients of the
// tokens that it depends on, and the oldest of them is whole then.
template <int V>
DEVICE void backward(global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts,
                     global<const bf16> dy, global<bf16> d_qkvz, int tokens, int run_length, const Layout& layout) {
    const Run<V> run(tokens, run_length);
    int channels = layout.channels(), width = layout.projection();
    if (run.channel >= channels) return;
    int source = layout.source(run.channel), end = min(run.last + BACK, tokens);
    global<const bf16> x = qkvz + source, d = dy + run.channel;
    constexpr int AHEAD = BACKWARD_AHEAD;
    Packed<V> before[BACK], ahead[AHEAD], d_ahead[AHEAD];
    int ages[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        ahead[i] = load_token<V>(x, width, run.first + i, end);
        d_ahead[i] = load_token<V>(d, channels, run.first + i, end);
        ages[i] = load_age(starts, run.first + i, end);
    }
    load_before<V>(x, width, run.first, run.first - ages[0], before);
    float w[TAPS][V];
    load_taps<V>(weight, run.channel, channels, w);
    // Of the tokens before t, the last of them first.
    float gradients[BACK][V] = {};
    for (int t = run.first; t < run.last + BACK; t += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int token = t + i, whole = token - BACK, age = ages[i];
            Packed<V> now = ahead[i], d_now = d_ahead[i];
            ahead[i] = load_token<V>(x, width, token + AHEAD, end);
            d_ahead[i] = load_token<V>(d, channels, token + AHEAD, end);
            ages[i] = load_age(starts, token + AHEAD, end);
            // Behind the end the upstream gradient is 0, and so is dp.
            float p[V], dp[V];
            convolve<V>(w, now, before, age, p);
            widen(d_now, dp);
#pragma unroll
            for (int k = 0; k < V; k++) dp[k] *= silu_slope(p[k], sigmoid(p[k]));
#pragma unroll
            for (int back = 1; back <= BACK; back++) {
                if (age < back) continue;
#pragma unroll
                for (int k = 0; k < V; k++) gradients[back - 1][k] = fused(w[back][k], dp[k], gradients[back - 1][k]);
            }
            if (whole >= run.first && whole < run.last) {
                store(d_qkvz + (int64_t(whole) * width + source), narrow(gradients[BACK - 1]));
            }
#pragma unroll
            for (int k = 0; k < V; k++) {
#pragma unroll
                for (int back = BACK - 1; back > 0; back--) gradients[back][k] = gradients[back - 1][k];
                gradients[0][k] = w[0][k] * dp[k];
            }
        }
    }
}

}  // namespace

#define FORWARD(name, V)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128, 4) name(                                                            \
        global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts, global<bf16> y, int tokens, \
        int run, int key_heads, int key_dim, int group_values, int group_width) {                                      \
        forward<V>(qkvz, weight, starts, y, tokens, run, Layout{key_heads, key_dim, group_values, group_width});       \
    }

FORWARD(conv_forward, 8)
KERNEL(conv_forward)
FORWARD(conv_forward_any, 1)
KERNEL(conv_forward_any)

#define BACKWARD(name, V)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128, 4) name(                                                            \
        global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts, global<const bf16> dy,     \
        global<bf16> d_qkvz, int tokens, int run, int key_heads, int key_dim, int group_values, int group_width) {     \
        backward<V>(qkvz, weight, starts, dy, d_qkvz, tokens, run,                                                     \
                    Layout{key_heads, key_dim, group_values, group_width});                                            \
    }

BACKWARD(conv_backward, 8)
KERNEL(conv_backward)
BACKWARD(conv_backward_any, 1)
KERNEL(conv_backward_any)
