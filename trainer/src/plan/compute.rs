//! Operations of a token, and the time they take.
//!
//! A product of `[1, in]` with `[in, out]` is `2 · in · out` operations. The base is frozen, so the way back computes the
//! gradient of a linear's input only, as much again; LoRA's pairs (`2 · rank · (in + out)`) compute both gradients. Where a
//! layer's graph is not kept, its forward pass runs twice; on a card without the last product of the routed experts, whose
//! result nothing on the way back asks for.

use serde::Serialize;

use super::adapted::{Adapted, LayerLora};
use super::layers::{BLOCK, dense_linears};
use super::machine::{Machine, MachineKind};
use super::rates::{Directions, Rates};
use super::{Work, inventory::BaseSizes};
use crate::config::{LayerConfig, MixerKind, MlpKind, ModelConfig};
use crate::lora::LoraPlan;
use crate::step::Recompute;

/// Operations of a token, in floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Operations {
    /// Forward through all layers, head and loss.
    pub forward: f64,
    /// Backward.
    pub backward: f64,
    /// What is computed a second time.
    pub recompute: f64,
    /// Those of the three that routed experts have.
    pub routed: f64,
    /// All three.
    pub total: f64,
}

/// How long a run takes and what that costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Reading the base.
    pub loading_seconds: f64,
    /// An optimiser step.
    pub step_seconds: f64,
    /// All evaluations.
    pub evaluation_seconds: f64,
    /// All of it.
    pub total_seconds: f64,
    /// Tokens a second while it trains.
    pub tokens_per_second: f64,
    /// Dollars, where the machine has a price.
    pub usd: Option<f64>,
}

/// Share of a card's published bandwidth that reading quantised weights reaches in the best public kernels.
const GPU_BANDWIDTH_SHARE: f64 = 0.85;
/// Kernels of a layer in one pass, and what starting one costs.
const GPU_LAUNCHES: f64 = 40.0 * 5e-6;
/// Operations a second of a CPU thread: two thirds of what a step reaches on a server with AVX-512 (`benches/LOG.md`, about
/// 90 GFLOP/s), since many have less.
const CPU_RATE: f64 = 60e9;
/// Bytes of NF4 that a CPU thread decodes in a second.
const CPU_DECODING: f64 = 1e9;
/// Bytes a second at which a network volume gives the base: 200 to 400 MB/s are measured.
const LOADING_RATE: f64 = 300e6;
/// Bytes of a value in the files of a base: bf16.
const STORED_BYTES: f64 = 2.0;

/// What of a forward pass is computed a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing: all graphs are kept.
    Nothing,
    /// Layers, as on a processor.
    Layers,
    /// Layers but for the last product of their routed experts, as on a card.
    LayersButDown,
}

/// Operations by what computes them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ByOp {
    pub(super) linears: f64,
    pub(super) experts: f64,
    pub(super) attention: f64,
    pub(super) delta_rule: f64,
    pub(super) head: f64,
}

/// Those of a token in each pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Passes {
    pub(super) forward: ByOp,
    pub(super) backward: ByOp,
    pub(super) again: ByOp,
}

// === impl Again ===

impl Again {
    pub(super) fn of(machine: &MachineKind, recompute: Recompute) -> Self {
        match (recompute, machine) {
            (Recompute::None, _) => Self::Nothing,
            (Recompute::Layers, MachineKind::Cpu { .. }) => Self::Layers,
            (Recompute::Layers, MachineKind::Gpu { .. }) => Self::LayersButDown,
        }
    }
}

// === impl ByOp ===

impl ByOp {
    fn add(&mut self, other: &Self) {
        self.linears += other.linears;
        self.experts += other.experts;
        self.attention += other.attention;
        self.delta_rule += other.delta_rule;
        self.head += other.head;
    }

    fn total(&self) -> f64 {
        self.linears + self.experts + self.attention + self.delta_rule + self.head
    }
}

// === impl Passes ===

impl Passes {
    /// Operations of a token of documents in which a token has, on average, `mean_document` tokens beside it; `targets` is the
    /// share of tokens whose loss is computed.
    pub(super) fn of(config: &ModelConfig, adapted: &Adapted, again: Again, mean_document: f64, targets: f64) -> Self {
        // A causal token sees half of its document.
        let keys = (mean_document + 1.0) / 2.0;
        let first = adapted.first();
        let mut sum = Self::default();
        for (index, (layer, lora)) in config.layers.iter().zip(&adapted.layers).enumerate() {
            let (mut forward, mut backward) = layer_operations(config, *layer, lora, keys);
            let (once, back, down) = routed(config, *layer, lora);
            (forward.experts, backward.experts) = (once, back);
            sum.forward.add(&forward);
            if index < first {
                continue;
            }
            sum.backward.add(&backward);
            match again {
                Again::Nothing => {}
                Again::Layers => sum.again.add(&forward),
                Again::LayersButDown => sum.again.add(&ByOp { experts: once - down, ..forward }),
            }
        }
        let (width, words) = (config.hidden_size as f64, config.vocab_size as f64);
        let low = adapted.head.unwrap_or_default() as f64 * (width + words);
        sum.forward.head = targets * 2.0 * (width * words + low);
        sum.backward.head = targets * (2.0 * width * words + 4.0 * low);
        sum
    }

    pub(super) fn operations(&self) -> Operations {
        let (forward, backward, recompute) = (self.forward.total(), self.backward.total(), self.again.total());
        let routed = self.forward.experts + self.backward.experts + self.again.experts;
        Operations { forward, backward, recompute, routed, total: forward + backward + recompute }
    }
}

/// Operations of a token of documents of one length, of which every token has a target.
pub fn operations_of_token(config: &ModelConfig, plan: &LoraPlan, again: Again, document: usize) -> Operations {
    Passes::of(config, &Adapted::new(config, plan), again, document as f64, 1.0).operations()
}

/// Forward and backward of the routed experts that a token meets, and how much of the first is the last product.
fn routed(config: &ModelConfig, layer: LayerConfig, lora: &LayerLora) -> (f64, f64, f64) {
    if layer.mlp != MlpKind::Sparse {
        return (0.0, 0.0, 0.0);
    }
    let (moe, each) = (&config.moe, config.moe.per_token as f64);
    let ranks = lora.expert_ranks(moe.experts);
    let pair = (config.hidden_size + moe.intermediate_size) as f64;
    let matrix = (config.hidden_size * moe.intermediate_size) as f64;
    let low = ranks.iter().sum::<f64>() * pair;
    let down = each * 2.0 * (matrix + ranks[2] * pair);
    (each * 2.0 * (3.0 * matrix + low), each * (2.0 * 3.0 * matrix + 4.0 * low), down)
}

/// Forward and backward of one layer without its routed experts.
fn layer_operations(config: &ModelConfig, layer: LayerConfig, lora: &LayerLora, keys: f64) -> (ByOp, ByOp) {
    let (mut forward, mut backward) = (ByOp::default(), ByOp::default());
    for (path, inputs, outputs) in dense_linears(config, layer) {
        let low = lora.rank(&path).unwrap_or_default() as f64 * (inputs + outputs) as f64;
        forward.linears += 2.0 * (inputs * outputs) as f64 + 2.0 * low;
        backward.linears += 2.0 * (inputs * outputs) as f64 + 4.0 * low;
    }
    match layer.mixer {
        MixerKind::Attention => (forward.attention, backward.attention) = attending(config, keys),
        MixerKind::DeltaNet => (forward.delta_rule, backward.delta_rule) = delta_rule(config),
    }
    (forward, backward)
}

/// Products between tokens. Scores and sums are two products; backward there are five.
fn attending(config: &ModelConfig, keys: f64) -> (f64, f64) {
    let product = 2.0 * (config.attention.heads * config.attention.head_dim) as f64 * keys;
    (2.0 * product, 5.0 * product)
}

/// Per value head of `k × v` and chunks of `C`: three products with the state, backward seven, and the products inside a
/// chunk.
fn delta_rule(config: &ModelConfig) -> (f64, f64) {
    let Some(delta) = &config.delta_net else { return (0.0, 0.0) };
    let (chunk, k, v) = (BLOCK as f64, delta.key_dim as f64, delta.value_dim as f64);
    let shared = delta.key_heads as f64 * 4.0 * chunk * k;
    let heads = delta.value_heads as f64;
    let forward = shared + heads * (6.0 * k * v + 3.0 * chunk * v);
    let backward = shared + heads * (14.0 * k * v + 7.0 * chunk * v + 8.0 * chunk * k);
    (forward, backward)
}

/// What the time of a run depends on besides the machine.
pub(super) struct Load<'a> {
    pub(super) work: &'a Work,
    pub(super) passes: Passes,
    pub(super) base: BaseSizes,
    pub(super) base_parameters: u64,
    pub(super) trainable: u64,
    pub(super) config: &'a ModelConfig,
    pub(super) recompute: Recompute,
}

// === impl Load ===

impl Load<'_> {
    /// The time on a machine, before a step was measured on it.
    pub(super) fn time(&self, machine: &Machine) -> Time {
        let work = self.work;
        let passes = if self.recompute == Recompute::Layers { 3.0 } else { 2.0 };
        let micro_batches = work.micro_batches as f64;
        let training = self.seconds(machine, work.computed_tokens as f64, &self.passes, passes * micro_batches);
        // Parameters, gradients and both moments are read and all but the gradients written.
        let optimizer = work.steps as f64 * self.trainable as f64 * 28.0 / bandwidth(machine);
        let capacity = work.largest_micro_batch.max(1) as f64;
        let forward = Passes { forward: self.passes.forward, ..Passes::default() };
        let validation = work.validation_tokens as f64;
        let evaluation = self.seconds(machine, validation, &forward, (validation / capacity).ceil());
        let loading = self.base_parameters as f64 * STORED_BYTES / LOADING_RATE;
        let training = training + optimizer;
        let total = loading + training + evaluation;
        Time {
            loading_seconds: loading,
            step_seconds: training / work.steps.max(1) as f64,
            evaluation_seconds: evaluation,
            total_seconds: total,
            tokens_per_second: if training > 0.0 { work.tokens as f64 / training } else { 0.0 },
            usd: machine.usd_per_hour().map(|price| price * total / 3600.0),
        }
    }

    /// Mean rows of an expert in a micro-batch: `tokens · k / experts`.
    fn rows(&self) -> f64 {
        let moe = &self.config.moe;
        let tokens = self.work.computed_tokens as f64 / self.work.micro_batches.max(1) as f64;
        (tokens * moe.per_token as f64 / moe.experts.max(1) as f64).max(1.0)
    }

    /// So many tokens, each with these operations, and so many passes over the weights.
    fn seconds(&self, machine: &Machine, tokens: f64, operations: &Passes, passes: f64) -> f64 {
        let quantised = self.base.quantised as f64;
        match &machine.kind {
            MachineKind::Cpu { threads, .. } => {
                let operations = tokens * operations.operations().total;
                (operations / CPU_RATE + passes * quantised / CPU_DECODING) / (*threads).max(1) as f64
            }
            MachineKind::Gpu { bf16_tflops, .. } => {
                let starts = passes * self.config.layers.len() as f64 * GPU_LAUNCHES;
                let Directions { forward, backward } = Rates::of(machine, self.rows());
                let at_peak = forward.slowed(&operations.forward)
                    + forward.slowed(&operations.again)
                    + backward.slowed(&operations.backward);
                tokens * at_peak / (bf16_tflops * 1e12) + passes * quantised / bandwidth(machine) + starts
            }
        }
    }
}

/// Bytes a second that a machine really gives.
fn bandwidth(machine: &Machine) -> f64 {
    /// Of a server's memory, for one thread or for all.
    const CPU_BANDWIDTH: f64 = 20e9;
    match machine.kind {
        MachineKind::Cpu { .. } => CPU_BANDWIDTH,
        MachineKind::Gpu { memory_bandwidth, .. } => memory_bandwidth * GPU_BANDWIDTH_SHARE,
    }
}
