//! The ops of a layer on a processor as [`Tape`]s: the forward code of `model`, with the buffers of the kernels behind it.
//!
//! `N` are the tokens of a micro-batch, `H` the width of the residual stream; what an op keeps or needs for a moment is
//! said where it is written down.

use super::adapted::LayerLora;
use super::engine::Engine;
use super::tape::{Cost, Gives, Op, Slot, Tape};
use crate::config::{LayerConfig, MixerKind, MlpKind, ModelConfig};
use crate::weights::PROJECTIONS;

/// Tokens of a chunk of the gated delta rule, and rows of a block of attention.
pub(super) const BLOCK: u64 = 64;

/// One micro-batch, as far as memory depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchShape {
    /// Tokens, padding included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Tokens of the longest document.
    pub longest: u64,
    /// Chunks of the gated delta rule: 64 tokens, and what is left of each document.
    pub chunks: u64,
    /// Tokens that have a target.
    pub targets: u64,
    /// Some documents are padded.
    pub padded: bool,
}

/// Builds the tape of a layer.
struct Builder<'a> {
    config: &'a ModelConfig,
    lora: &'a LayerLora,
    engine: &'a Engine,
    batch: &'a BatchShape,
    dropout: bool,
    quantised: bool,
    tape: Tape,
}

/// What one layer takes. `wants_input`: the gradient of its input is wanted, which it is not in the first layer that learns.
pub(super) fn cost(
    config: &ModelConfig,
    layer: LayerConfig,
    lora: &LayerLora,
    engine: &Engine,
    batch: &BatchShape,
    (dropout, quantised, wants_input): (bool, bool, bool),
) -> Cost {
    let mut builder = Builder { config, lora, engine, batch, dropout, quantised, tape: Tape::default() };
    builder.layer(layer, wants_input);
    builder.tape.cost()
}

// === impl Builder ===

impl Builder<'_> {
    /// Bytes of `width` values a token.
    fn rows(&self, width: usize) -> u64 {
        Engine::values(self.batch.tokens * width as u64)
    }

    /// An op with no more than its arguments and its output.
    fn op(&mut self, inputs: &[Slot], width: usize) -> Slot {
        let output = self.rows(width);
        self.tape.run(Op { inputs: inputs.to_vec(), output, ..Op::default() })
    }

    fn add(&mut self, left: Slot, right: Slot) -> Slot {
        let output = self.tape.bytes(left);
        self.tape.run(Op { inputs: vec![left, right], output, gives: Gives::Itself, ..Op::default() })
    }

    /// `h + mixer(norm(h))`, then `+ mlp(norm(·))`. The norms' outputs live to the end of the layer's forward code.
    fn layer(&mut self, layer: LayerConfig, wants_input: bool) {
        let hidden = self.config.hidden_size;
        let input = self.tape.input(self.rows(hidden), wants_input);
        let normed = self.op(&[input], hidden);
        let mixed = match layer.mixer {
            MixerKind::Attention => self.attention(normed),
            MixerKind::DeltaNet => self.delta_net(normed),
        };
        let middle = self.add(input, mixed);
        self.tape.drop(mixed);
        let normed = self.op(&[middle], hidden);
        let out = match layer.mlp {
            MlpKind::Dense => self.swiglu(normed, "mlp", self.config.intermediate_size),
            MlpKind::Sparse => self.sparse(normed),
        };
        self.add(middle, out);
    }

    /// A linear. With LoRA it keeps `drop(x) Aᵀ` (`N · rank`); dropped inputs are copies. Backward: the gradient of
    /// `drop(x) Aᵀ`, and with dropout the dropped input and what comes back through the mask.
    fn linear(&mut self, x: Slot, path: &str, inputs: usize, outputs: usize) -> Slot {
        let output = self.rows(outputs);
        let Some(rank) = self.lora.rank(path) else {
            return self.tape.run(Op { inputs: vec![x], output, gives: Gives::All, ..Op::default() });
        };
        let a = self.tape.parameter(4 * (rank * inputs) as u64);
        let b = self.tape.parameter(4 * (rank * outputs) as u64);
        let (low, copy) = (self.rows(rank), if self.dropout { self.rows(inputs) } else { 0 });
        self.tape.run(Op {
            inputs: vec![x, a, b],
            output,
            scratch: copy,
            saved: low,
            saved_anyway: true,
            backward_scratch: low + 2 * copy,
            gives: Gives::Wanted,
        })
    }

    /// `o_proj(attention(rope(norm(q)), rope(norm(k)), v) [⊙ σ(gate)])`.
    fn attention(&mut self, x: Slot) -> Slot {
        let attention = &self.config.attention;
        let hidden = self.config.hidden_size;
        let queries = attention.heads * attention.head_dim;
        let keys = attention.key_value_heads * attention.head_dim;
        let (gated, heads) = (attention.output_gate, attention.heads);
        let projected = self.linear(x, "self_attn.q_proj", hidden, if gated { 2 * queries } else { queries });
        let q = self.op(&[projected], queries);
        let raw = self.linear(x, "self_attn.k_proj", hidden, keys);
        let k = self.op(&[raw], keys);
        self.tape.drop(raw);
        let v = self.linear(x, "self_attn.v_proj", hidden, keys);
        let mut out = self.attend([q, k, v], queries, heads);
        if gated {
            let output = self.rows(queries);
            let ungated = out;
            out = self.tape.run(Op { inputs: vec![ungated, projected], output, gives: Gives::All, ..Op::default() });
            self.tape.drop(ungated);
        }
        let result = self.linear(out, "self_attn.o_proj", queries, hidden);
        [projected, q, k, v, out].into_iter().for_each(|slot| self.tape.drop(slot));
        result
    }

    /// Keeps the log-sum of every row and head. A task holds one block of scores (`64 · keys`) and its rows; backward two
    /// of each, and the gradients of its keys and values.
    fn attend(&mut self, qkv: [Slot; 3], queries: usize, heads: usize) -> Slot {
        let width = self.config.attention.head_dim as u64;
        let (scores, rows) = (BLOCK * self.batch.longest, BLOCK * width);
        let tasks = self.engine.threads.min(self.batch.documents * self.config.attention.key_value_heads as u64);
        let own = 2 * self.batch.longest * width;
        let output = self.rows(queries);
        self.tape.run(Op {
            inputs: qkv.to_vec(),
            output,
            scratch: 4 * tasks * (scores + rows),
            saved: 4 * self.batch.tokens * heads as u64,
            saved_anyway: false,
            backward_scratch: 4 * tasks * (2 * scores + rows + own),
            gives: Gives::All,
        })
    }

    /// `out_proj(norm(delta_rule(silu(conv(q, k, v)), b, a)) ⊙ silu(z))`.
    fn delta_net(&mut self, x: Slot) -> Slot {
        let Some(delta) = &self.config.delta_net else { return x };
        let (hidden, heads) = (self.config.hidden_size, delta.value_heads);
        let (keys, values) = (delta.key_heads * delta.key_dim, heads * delta.value_dim);
        let x = if self.batch.padded { self.op(&[x], hidden) } else { x };
        let qkvz = self.linear(x, "linear_attn.in_proj_qkvz", hidden, 2 * keys + 2 * values);
        let ba = self.linear(x, "linear_attn.in_proj_ba", hidden, 2 * heads);
        let qkv = self.op(&[qkvz], 2 * keys + values);
        let out = self.delta_rule(qkv, ba);
        let output = self.rows(values);
        let normed = self.tape.run(Op { inputs: vec![out, qkvz], output, gives: Gives::All, ..Op::default() });
        let result = self.linear(normed, "linear_attn.out_proj", values, hidden);
        [qkvz, ba, qkv, out, normed].into_iter().for_each(|slot| self.tape.drop(slot));
        if self.batch.padded {
            self.tape.drop(x);
        }
        result
    }

    /// Keeps the state before every chunk (`key_dim · value_dim` a head) and what was written to it (`N · values`). A task
    /// holds the states of its heads and about ten matrices of a chunk.
    fn delta_rule(&mut self, qkv: Slot, ba: Slot) -> Slot {
        let Some(delta) = &self.config.delta_net else { return qkv };
        let (heads, state) = (delta.value_heads, (delta.key_dim * delta.value_dim) as u64);
        let per_key = (heads / delta.key_heads.max(1)) as u64;
        let tasks = self.engine.threads.min(self.batch.documents * delta.key_heads as u64);
        let chunk = BLOCK * (5 * (delta.key_dim + delta.value_dim) as u64 + 5 * BLOCK);
        let written = self.rows(heads * delta.value_dim);
        let scratch = 4 * tasks * (per_key * state + chunk);
        self.tape.run(Op {
            inputs: vec![qkv, ba],
            output: written,
            scratch,
            saved: 4 * self.batch.chunks * heads as u64 * state + written,
            saved_anyway: false,
            backward_scratch: 2 * scratch,
            gives: Gives::All,
        })
    }

    /// `down(silu(gate x) ⊙ up x)`; gate's and up's outputs are dropped once they are multiplied.
    fn swiglu(&mut self, x: Slot, path: &str, width: usize) -> Slot {
        let hidden = self.config.hidden_size;
        let [gate, up] = ["gate_proj", "up_proj"].map(|name| self.linear(x, &format!("{path}.{name}"), hidden, width));
        let output = self.rows(width);
        let inner = self.tape.run(Op { inputs: vec![gate, up], output, gives: Gives::All, ..Op::default() });
        self.tape.drop(gate);
        self.tape.drop(up);
        let out = self.linear(inner, &format!("{path}.down_proj"), width, hidden);
        self.tape.drop(inner);
        out
    }

    /// Router, routed experts, and the shared expert scaled by its gate. The router's logits and weights live as long as
    /// the layer's output.
    fn sparse(&mut self, x: Slot) -> Slot {
        let (hidden, experts, k) = (self.config.hidden_size, self.config.moe.experts, self.config.moe.per_token);
        let logits = self.linear(x, "mlp.gate", hidden, experts);
        // The weights, and the routing: three `u32` for each choice.
        let weights = self.rows(k) + 12 * self.batch.tokens * k as u64;
        let weights = self.tape.run(Op { inputs: vec![logits], output: weights, gives: Gives::All, ..Op::default() });
        let out = self.experts(x, weights);
        let Some(width) = self.config.moe.shared_intermediate_size else { return out };
        let shared = self.swiglu(x, "mlp.shared_expert", width);
        let gate = self.linear(x, "mlp.shared_expert_gate", hidden, 1);
        let output = self.rows(hidden);
        let scaled = self.tape.run(Op { inputs: vec![shared, gate], output, gives: Gives::All, ..Op::default() });
        let sum = self.add(out, scaled);
        [out, scaled, shared, gate].into_iter().for_each(|slot| self.tape.drop(slot));
        sum
    }

    /// The routed experts as one op over `S = N · k` rows. Forward: the rows' outputs (`S · H`) beside gate and up (`S ·
    /// 2I`), of which gate, up and the low-rank rows are kept. Backward: the rows' input gradients (`S · H`), and those of
    /// the weights in two orders. A task holds one expert: its decoded weight, its rows, and backward their gradients.
    fn experts(&mut self, x: Slot, weights: Slot) -> Slot {
        let moe = &self.config.moe;
        let (hidden, inner, k) = (self.config.hidden_size, moe.intermediate_size, moe.per_token);
        let out = self.rows(hidden);
        let [slots, outputs, gate_up] = [1, hidden, 2 * inner].map(|width| self.rows(k * width));
        let ranks = self.lora.expert_ranks(moe.experts);
        let low = slots as f64 * ranks.iter().sum::<f64>();
        let rows = self.batch.tokens * k as u64 / moe.experts.max(1) as u64;
        let tasks = self.engine.threads.min(moe.experts as u64);
        let decoded = if self.quantised { 2 * inner * hidden } else { 0 } as u64;
        // Adapted experts with dropout copy their input; backward, gate and up ask for the rows again.
        let (copies, again) = match (self.lora.has_experts(), self.dropout) {
            (true, true) => (hidden, 2 * hidden),
            (true, false) => (0, hidden),
            (false, _) => (0, 0),
        };
        let forward = tasks * 4 * (decoded + rows * (hidden + inner + copies) as u64);
        let backward = tasks * 4 * (decoded + rows * (hidden + 4 * inner + copies + again) as u64);
        let mut inputs = vec![x, weights];
        if self.lora.has_experts() {
            inputs.push(self.tape.parameter(4 * self.lora.expert_values));
        }
        let op = Op {
            inputs,
            output: out,
            // The tasks are over when the rows are summed into the output.
            scratch: outputs + forward.saturating_sub(out),
            saved: gate_up + low as u64,
            saved_anyway: true,
            backward_scratch: outputs + slots + backward.saturating_sub(out),
            gives: Gives::Wanted,
        };
        self.tape.run(op)
    }
}

/// The linears of a layer with their inputs and outputs, as far as their products are counted for every token.
pub(super) fn dense_linears(config: &ModelConfig, layer: LayerConfig) -> Vec<(String, usize, usize)> {
    let hidden = config.hidden_size;
    let mut list: Vec<(String, usize, usize)> = Vec::new();
    match (layer.mixer, &config.delta_net) {
        (MixerKind::DeltaNet, Some(delta)) => {
            let (keys, values) = (delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim);
            list.push(("linear_attn.in_proj_qkvz".into(), hidden, 2 * keys + 2 * values));
            list.push(("linear_attn.in_proj_ba".into(), hidden, 2 * delta.value_heads));
            list.push(("linear_attn.out_proj".into(), values, hidden));
        }
        _ => {
            let attention = &config.attention;
            let queries = attention.heads * attention.head_dim;
            let keys = attention.key_value_heads * attention.head_dim;
            list.push(("self_attn.q_proj".into(), hidden, if attention.output_gate { 2 * queries } else { queries }));
            list.push(("self_attn.k_proj".into(), hidden, keys));
            list.push(("self_attn.v_proj".into(), hidden, keys));
            list.push(("self_attn.o_proj".into(), queries, hidden));
        }
    }
    let mut swiglu = |path: &str, width: usize| {
        for (name, (inputs, outputs)) in PROJECTIONS.iter().zip([(hidden, width), (hidden, width), (width, hidden)]) {
            list.push((format!("{path}.{name}"), inputs, outputs));
        }
    };
    match (layer.mlp, config.moe.shared_intermediate_size) {
        (MlpKind::Dense, _) => swiglu("mlp", config.intermediate_size),
        (MlpKind::Sparse, Some(width)) => swiglu("mlp.shared_expert", width),
        (MlpKind::Sparse, None) => {}
    }
    if layer.mlp == MlpKind::Sparse {
        list.push(("mlp.gate".into(), hidden, config.moe.experts));
        if config.moe.shared_intermediate_size.is_some() {
            list.push(("mlp.shared_expert_gate".into(), hidden, 1));
        }
    }
    list
}
