//! Operations of a token, and the time they take.
//!
//! A product of `[1, in]` with `[in, out]` is `2 · in · out` operations. The base is frozen, so the way back computes the
//! gradient of a linear's input only, as much again; LoRA's pairs (`2 · rank · (in + out)`) compute both gradients. Where a
//! layer's graph is not kept, its forward pass runs twice.

use serde::Serialize;

use super::adapted::{Adapted, LayerLora};
use super::layers::{BLOCK, dense_linears};
use super::machine::{Machine, MachineKind};
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

/// Share of a card's published rate that a step reaches: what good training stacks get from mixture-of-experts models
/// (NeMo on H100: 28 %).
const GPU_RATE_SHARE: f64 = 0.3;
/// Share of a card's published bandwidth that reading quantised weights reaches in the best public kernels.
const GPU_BANDWIDTH_SHARE: f64 = 0.85;
/// Rows of a tile of the experts' products: an expert with fewer rows computes a whole tile all the same.
const GPU_TILE: f64 = 64.0;
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

/// Operations of a token of documents in which a token has, on average, `mean_document` tokens beside it; `targets` is the
/// share of tokens whose loss is computed.
pub(super) fn operations(
    config: &ModelConfig,
    adapted: &Adapted,
    recompute: Recompute,
    mean_document: f64,
    targets: f64,
) -> Operations {
    // A causal token sees half of its document.
    let keys = (mean_document + 1.0) / 2.0;
    let first = adapted.first();
    let mut sum = Operations::default();
    for (index, (layer, lora)) in config.layers.iter().zip(&adapted.layers).enumerate() {
        let again = if recompute == Recompute::Layers { 1.0 } else { 0.0 };
        for (part, routed) in [(layer_operations(config, *layer, lora, keys), 0.0), (routed(config, *layer, lora), 1.0)]
        {
            let (forward, backward, again) = match index >= first {
                true => (part.0, part.1, again * part.0),
                false => (part.0, 0.0, 0.0),
            };
            sum.forward += forward;
            sum.backward += backward;
            sum.recompute += again;
            sum.routed += routed * (forward + backward + again);
        }
    }
    let (width, words) = (config.hidden_size as f64, config.vocab_size as f64);
    let low = adapted.head.unwrap_or_default() as f64 * (width + words);
    sum.forward += targets * 2.0 * (width * words + low);
    sum.backward += targets * (2.0 * width * words + 4.0 * low);
    sum.total = sum.forward + sum.backward + sum.recompute;
    sum
}

/// Operations of a token of documents of one length, of which every token has a target.
pub fn operations_of_token(config: &ModelConfig, plan: &LoraPlan, recompute: Recompute, document: usize) -> Operations {
    operations(config, &Adapted::new(config, plan), recompute, document as f64, 1.0)
}

/// Forward and backward of the routed experts that a token meets.
fn routed(config: &ModelConfig, layer: LayerConfig, lora: &LayerLora) -> (f64, f64) {
    if layer.mlp != MlpKind::Sparse {
        return (0.0, 0.0);
    }
    let moe = &config.moe;
    let low = lora.expert_ranks(moe.experts).iter().sum::<f64>() * (config.hidden_size + moe.intermediate_size) as f64;
    let base = 3.0 * (config.hidden_size * moe.intermediate_size) as f64;
    (moe.per_token as f64 * 2.0 * (base + low), moe.per_token as f64 * (2.0 * base + 4.0 * low))
}

/// Forward and backward of one layer without its routed experts.
fn layer_operations(config: &ModelConfig, layer: LayerConfig, lora: &LayerLora, keys: f64) -> (f64, f64) {
    let (mut forward, mut backward) = (0.0, 0.0);
    for (path, inputs, outputs) in dense_linears(config, layer) {
        let low = lora.rank(&path).unwrap_or_default() as f64 * (inputs + outputs) as f64;
        forward += 2.0 * (inputs * outputs) as f64 + 2.0 * low;
        backward += 2.0 * (inputs * outputs) as f64 + 4.0 * low;
    }
    let (mix, unmix) = mixing(config, layer.mixer, keys);
    (forward + mix, backward + unmix)
}

/// Products between tokens. Attention: scores and sums (two products), backward five. The delta rule, per value head of `k ×
/// v` and chunks of `C`: three products with the state, backward seven, and the products inside a chunk.
fn mixing(config: &ModelConfig, mixer: MixerKind, keys: f64) -> (f64, f64) {
    match (mixer, &config.delta_net) {
        (MixerKind::DeltaNet, Some(delta)) => {
            let (chunk, k, v) = (BLOCK as f64, delta.key_dim as f64, delta.value_dim as f64);
            let shared = delta.key_heads as f64 * 4.0 * chunk * k;
            let heads = delta.value_heads as f64;
            let forward = shared + heads * (6.0 * k * v + 3.0 * chunk * v);
            let backward = shared + heads * (14.0 * k * v + 7.0 * chunk * v + 8.0 * chunk * k);
            (forward, backward)
        }
        _ => {
            let product = 2.0 * (config.attention.heads * config.attention.head_dim) as f64 * keys;
            (2.0 * product, 5.0 * product)
        }
    }
}

/// What the time of a run depends on besides the machine.
pub(super) struct Load<'a> {
    pub(super) work: &'a Work,
    pub(super) operations: Operations,
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
        let training =
            self.seconds(machine, work.computed_tokens as f64 * self.operations.total, passes * micro_batches);
        // Parameters, gradients and both moments are read and all but the gradients written.
        let optimizer = work.steps as f64 * self.trainable as f64 * 28.0 / bandwidth(machine);
        let capacity = work.largest_micro_batch.max(1) as f64;
        let evaluation = self.seconds(
            machine,
            work.validation_tokens as f64 * self.operations.forward,
            (work.validation_tokens as f64 / capacity).ceil(),
        );
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

    /// By how much more is computed because the rows of an expert (`tokens · k / experts`) do not fill their tiles.
    fn tiles(&self) -> f64 {
        let moe = &self.config.moe;
        let tokens = self.work.computed_tokens as f64 / self.work.micro_batches.max(1) as f64;
        let rows = (tokens * moe.per_token as f64 / moe.experts.max(1) as f64).max(1.0);
        let share = self.operations.routed / self.operations.total.max(1.0);
        1.0 - share + share * (rows / GPU_TILE).ceil() * GPU_TILE / rows
    }

    /// So many operations, and so many passes over the weights.
    fn seconds(&self, machine: &Machine, operations: f64, passes: f64) -> f64 {
        let quantised = self.base.quantised as f64;
        match machine.kind {
            MachineKind::Cpu { threads, .. } => {
                (operations / CPU_RATE + passes * quantised / CPU_DECODING) / threads.max(1) as f64
            }
            MachineKind::Gpu { bf16_tflops, .. } => {
                let starts = passes * self.config.layers.len() as f64 * GPU_LAUNCHES;
                let operations = operations * self.tiles();
                operations / (bf16_tflops * 1e12 * GPU_RATE_SHARE) + passes * quantised / bandwidth(machine) + starts
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
