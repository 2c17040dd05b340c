// Causal depthwise convolution with silu, straight from the grouped projection:
//   p[t] = Σ_back w[back] x[t - back],  y = silu(p);  dp = dy ⊙ silu'(p),  dx[t] = Σ_back w[back] dp[t + back]
// inside of t's document.
//
// Bound by memory: one read of q, k and v and one write; two reads backward. A thread has 8 channels (16 bytes) and walks a
// run of tokens; a value is added to the sums of this token and the next three when it passes by, so that each is read and
// widened once, but for the 3 tokens before a run (and behind it, backward), which neighbours read at about the same time
// and the second-level cache has. The next tokens are under way while one is computed; some 100 and 190 instructions for
// 16 bytes of each, where the bandwidth of an H200 leaves time for 200 and 300. Neighbouring threads have neighbouring
// channels; a document's border is the same for all threads of a warp.
//
// Weights are held times -log2(e), so that q = -p log2(e), the argument of 2^x in the sigmoid, is what is summed.
#include "values.h"

// Of newer cards the compiler wants more registers than three blocks leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define BACKWARD_BLOCKS 2
#else
#define BACKWARD_BLOCKS 3
#endif

namespace {

constexpr int TAPS = 4;
constexpr int BACK = TAPS - 1;
// Tokens under way: 3 backward, where there are two pieces of each, so that a thread has enough registers (168).
constexpr int FORWARD_AHEAD = 4;
constexpr int BACKWARD_AHEAD = 3;

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

// -log2(e) weight[back][channel]
template <int V> DEVICE void load_taps(global<const float> weight, int channel, int channels, float (&w)[TAPS][V]) {
#pragma unroll
    for (int back = 0; back < TAPS; back++) {
        load_floats<V>(weight + (back * channels + channel), w[back]);
#pragma unroll
        for (int k = 0; k < V; k++) w[back][k] *= -LOG2_E;
    }
}

// A token's values; 0 outside of `from..end`.
template <int V> DEVICE Packed<V> load_token(global<const bf16> x, int width, int token, int from, int end) {
    return token >= from && token < end ? load<Packed<V>>(x + int64_t(token) * width) : Packed<V>{};
}

// How many tokens its document has had before a token; behind the end as if it had gone on.
DEVICE int load_age(global<const uint32_t> starts, int token, int end) {
    return token < end ? token - int(starts[token]) : BACK;
}

// Whether all that the next tokens depend on is of their document. There is one way through them for this, without
// comparisons, and one for others.
template <int AHEAD> DEVICE bool steady(const int (&ages)[AHEAD]) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) all = all && ages[i] >= BACK;
    return all;
}

// sums[i] is what the token i behind this one has so far. Oldest value first, wherever runs begin.
template <int V>
DEVICE void convolve(const float (&w)[TAPS][V], const Packed<V>& now, float (&sums)[BACK][V], float (&q)[V]) {
    float x[V];
    widen(now, x);
#pragma unroll
    for (int k = 0; k < V; k++) {
        q[k] = fused(w[0][k], x[k], sums[0][k]);
#pragma unroll
        for (int i = 1; i < BACK; i++) sums[i - 1][k] = fused(w[i][k], x[k], sums[i][k]);
        sums[BACK - 1][k] = w[BACK][k] * x[k];
    }
}

template <int V> DEVICE void forget(float (&sums)[BACK][V]) {
#pragma unroll
    for (int i = 0; i < BACK; i++) {
#pragma unroll
        for (int k = 0; k < V; k++) sums[i][k] = 0;
    }
}

// What the tokens before a run leave to it: those of the document that goes on there.
template <int V>
DEVICE void walk_up(global<const bf16> x, int width, int first, int start, const float (&w)[TAPS][V], float (&sums)[BACK][V]) {
    Packed<V> before[BACK];
#pragma unroll
    for (int i = 0; i < BACK; i++) before[i] = load_token<V>(x, width, first - BACK + i, start, first);
    float q[V];
    forget<V>(sums);
#pragma unroll
    for (int i = 0; i < BACK; i++) convolve<V>(w, before[i], sums, q);
}

template <int V> struct Forward {
    static constexpr int AHEAD = FORWARD_AHEAD;

    global<const bf16> x;
    global<const uint32_t> starts;
    global<bf16> y;
    int width, channels, end;
    float w[TAPS][V], sums[BACK][V];
    Packed<V> ahead[AHEAD];
    int ages[AHEAD];

    DEVICE void ask(int i, int token) {
        ahead[i] = load_token<V>(x, width, token, 0, end);
        ages[i] = load_age(starts, token, end);
    }

    template <bool STEADY> DEVICE void walk(int t) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (!STEADY && ages[i] == 0) forget<V>(sums);
            float q[V];
            convolve<V>(w, ahead[i], sums, q);
            ask(i, t + i + AHEAD);
            // p σ(p) = q / (-log2(e) (1 + 2^q))
#pragma unroll
            for (int k = 0; k < V; k++) q[k] *= fast_reciprocal(fused(fast_exp2(q[k]), -LOG2_E, -LOG2_E));
            if (t + i < end) store(y + int64_t(t + i) * channels, narrow(q));
        }
    }
};

template <int V>
DEVICE void forward(global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts, global<bf16> y,
                    int tokens, int run_length, const Layout& layout) {
    const Run<V> run(tokens, run_length);
    if (run.channel >= layout.channels()) return;
    Forward<V> state;
    state.x = qkvz + layout.source(run.channel), state.starts = starts, state.y = y + run.channel;
    state.width = layout.projection(), state.channels = layout.channels(), state.end = run.last;
#pragma unroll
    for (int i = 0; i < FORWARD_AHEAD; i++) state.ask(i, run.first + i);
    load_taps<V>(weight, run.channel, state.channels, state.w);
    walk_up<V>(state.x, state.width, run.first, run.first - state.ages[0], state.w, state.sums);
    for (int t = run.first; t < run.last; t += FORWARD_AHEAD) {
        if (steady(state.ages)) {
            state.template walk<true>(t);
        } else {
            state.template walk<false>(t);
        }
    }
}

// `gradients[i]` is what the token i + 1 before this one has so far: adds what dp passes on to those that this one depends
// on, the last of which is whole then, and moves on by a token.
template <int V, bool STEADY>
DEVICE void pass_back(const float (&w)[TAPS][V], const float (&dp)[V], int age, float (&gradients)[BACK][V], float (&whole)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++) {
        whole[k] = STEADY || age >= BACK ? fused(w[BACK][k], dp[k], gradients[BACK - 1][k]) : gradients[BACK - 1][k];
#pragma unroll
        for (int i = BACK - 1; i > 0; i--) {
            gradients[i][k] = STEADY || age >= i ? fused(w[i][k], dp[k], gradients[i - 1][k]) : gradients[i - 1][k];
        }
        gradients[0][k] = w[0][k] * dp[k];
    }
}

template <int V> struct Backward {
    static constexpr int AHEAD = BACKWARD_AHEAD;

    global<const bf16> x, d;
    global<const uint32_t> starts;
    global<bf16> dx;
    int width, channels, first, last, end;
    float w[TAPS][V], sums[BACK][V], gradients[BACK][V];
    Packed<V> ahead[AHEAD], d_ahead[AHEAD];
    int ages[AHEAD];

    DEVICE void ask(int i, int token) {
        ahead[i] = load_token<V>(x, width, token, 0, end);
        d_ahead[i] = load_token<V>(d, channels, token, 0, end);
        ages[i] = load_age(starts, token, end);
    }

    template <bool STEADY> DEVICE void walk(int t) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int age = ages[i], whole = t + i - BACK;
            if (!STEADY && age == 0) forget<V>(sums);
            float q[V], dp[V];
            convolve<V>(w, ahead[i], sums, q);
            widen(d_ahead[i], dp);
            ask(i, t + i + AHEAD);
            // -ln(2) silu'(p) = s (q ln(2)² (1 - s) - ln(2)), s = σ(p): the factor that the weights have too much.
#pragma unroll
            for (int k = 0; k < V; k++) {
                float s = fast_reciprocal(1.0f + fast_exp2(q[k]));
                dp[k] *= s * fused(q[k], fused(s, -LN_2 * LN_2, LN_2 * LN_2), -LN_2);
            }
            pass_back<V, STEADY>(w, dp, age, gradients, q);
            if (whole >= first && whole < last) store(dx + int64_t(whole) * width, narrow(q));
        }
    }
};

// dx of a run, while dp walks from its first token to 3 tokens behind its last.
template <int V>
DEVICE void backward(global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts,
                     global<const bf16> dy, global<bf16> d_qkvz, int tokens, int run_length, const Layout& layout) {
    const Run<V> run(tokens, run_length);
    if (run.channel >= layout.channels()) return;
    int source = layout.source(run.channel);
    Backward<V> state;
    state.x = qkvz + source, state.d = dy + run.channel, state.starts = starts, state.dx = d_qkvz + source;
    state.width = layout.projection(), state.channels = layout.channels();
    state.first = run.first, state.last = run.last, state.end = min(run.last + BACK, tokens);
#pragma unroll
    for (int i = 0; i < BACKWARD_AHEAD; i++) state.ask(i, run.first + i);
    load_taps<V>(weight, run.channel, state.channels, state.w);
    walk_up<V>(state.x, state.width, run.first, run.first - state.ages[0], state.w, state.sums);
    forget<V>(state.gradients);
    for (int t = run.first; t < run.last + BACK; t += BACKWARD_AHEAD) {
        if (steady(state.ages)) {
            state.template walk<true>(t);
        } else {
            state.template walk<false>(t);
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
    extern "C" __global__ void __launch_bounds__(128, BACKWARD_BLOCKS) name(                                              \
        global<const bf16> qkvz, global<const float> weight, global<const uint32_t> starts, global<const bf16> dy,     \
        global<bf16> d_qkvz, int tokens, int run, int key_heads, int key_dim, int group_values, int group_width) {     \
        backward<V>(qkvz, weight, starts, dy, d_qkvz, tokens, run,                                                     \
                    Layout{key_heads, key_dim, group_values, group_width});                                            \
    }

BACKWARD(conv_backward, 8)
KERNEL(conv_backward)
BACKWARD(conv_backward_any, 1)
KERNEL(conv_backward_any)
