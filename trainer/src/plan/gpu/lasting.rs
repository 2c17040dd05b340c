//! What lies on a card from the first step to the last: the base, the adapters in all their forms, the optimiser's state.

use std::collections::BTreeMap;

use brightrun_kernels::adamw::MOMENT_BLOCK;
use brightrun_kernels::gpu::arena::rounded;

use super::experts::RANKS;
use crate::config::ModelConfig;
use crate::lora::LoraPlan;
use crate::optim::OptimizerKind;
use crate::run::Parameters;
use crate::weights::ExpertPath;

/// Parameters begin at multiples of so many values (`gpu::adapters`).
const GRAIN: u64 = 128;
/// Values whose squares are summed together (`grad_norm::gpu`).
const NORM_UNIT: u64 = 4096;
/// Codes, limits and buckets of both maps of 8-bit moments (`adamw::gpu::tables`).
const MAPS: u64 = 12_960;
/// `β^t` is nothing beside 1 from `t = -ln(2^54) / ln β` on: corrections end there.
const CORRECTION_BITS: f64 = 54.0;

/// Bytes of what learns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lasting {
    /// Values in `f32`, copies in bf16 as products read them, and which experts had rows.
    pub(super) adapters: u64,
    /// Gradients of all of them.
    pub(super) gradients: u64,
    /// Moments, and the tables of the norm and of the update.
    pub(super) optimizer: u64,
}

/// The routed experts of a layer, as far as they learn.
#[derive(Default)]
struct List {
    /// Rank of gate, up and down at most.
    ranks: [u64; 3],
    values: u64,
    /// Values of each expert, and of each matrix.
    experts: BTreeMap<usize, u64>,
    matrices: Vec<u64>,
}

// === impl Lasting ===

impl Lasting {
    /// Of a run of so many steps.
    pub(super) fn of(config: &ModelConfig, plan: &LoraPlan, parameters: &Parameters, steps: u64) -> Self {
        let (mut matrices, mut lists) = (Vec::new(), BTreeMap::<&str, List>::new());
        for module in &plan.modules {
            let [rank, inputs, outputs] = [module.rank, module.inputs, module.outputs].map(|size| size as u64);
            let pair = [rank * inputs, outputs * rank];
            match ExpertPath::parse(&module.path) {
                None => matrices.extend(pair),
                Some(place) => {
                    let list = lists.entry(place.list).or_default();
                    list.ranks[place.projection] = list.ranks[place.projection].max(rank);
                    list.values += pair[0] + pair[1];
                    *list.experts.entry(place.expert).or_default() += pair[0] + pair[1];
                    list.matrices.extend(pair);
                }
            }
        }
        let tensors: Vec<u64> = matrices.iter().copied().chain(lists.values().map(|list| list.values)).collect();
        let together: Vec<u64> = match parameters.loraplus_lr_ratio {
            1.0 => {
                matrices.iter().copied().chain(lists.values().flat_map(|list| list.experts.values().copied())).collect()
            }
            _ => matrices.iter().copied().chain(lists.values().flat_map(|list| list.matrices.clone())).collect(),
        };
        let experts = config.moe.experts as u64;
        let values = rounded(4 * tensors.iter().map(|count| count.next_multiple_of(GRAIN)).sum::<u64>());
        let copies: u64 = matrices.iter().map(|count| rounded(2 * count)).sum();
        let packed: u64 = lists.values().map(|list| packed(config, list.ranks)).sum();
        let hits = rounded(4 * experts * lists.len() as u64);
        Self {
            adapters: values + copies + packed + hits,
            gradients: values,
            optimizer: norm(&tensors) + adamw(&together, parameters, steps),
        }
    }
}

/// The LoRA of a layer's experts as products read it (`moe::gpu::lora`): ranks padded, with a zero for what an expert lacks.
fn packed(config: &ModelConfig, ranks: [u64; 3]) -> u64 {
    let [gate, up, down] = ranks.map(|rank| rank.next_multiple_of(RANKS));
    let (experts, hidden) = (config.moe.experts as u64, config.hidden_size as u64);
    let width = config.moe.intermediate_size as u64;
    let lists = 9 * rounded(4 * experts);
    let a = [(gate + up) * hidden, down * width];
    let b = [width * gate, width * up, hidden * down];
    lists + a.into_iter().chain(b).map(|values| rounded(2 * experts * values)).sum::<u64>()
}

/// The norm of so many gradients (`grad_norm::gpu`).
fn norm(tensors: &[u64]) -> u64 {
    let count = tensors.len() as u64;
    let units: u64 = tensors.iter().map(|values| values.div_ceil(NORM_UNIT)).sum();
    rounded(16 * count) + rounded(4 * (count + 1)) + rounded(8 * units) + 2 * rounded(8)
}

/// Moments in whole blocks, and what a step knows of each tensor (`adamw::gpu`).
fn adamw(tensors: &[u64], parameters: &Parameters, steps: u64) -> u64 {
    let count = tensors.len() as u64;
    let units: u64 = tensors.iter().map(|values| values.div_ceil(MOMENT_BLOCK as u64)).sum();
    let values = units * MOMENT_BLOCK as u64;
    let moments = match parameters.optimizer {
        OptimizerKind::AdamW => 2 * rounded(4 * values),
        OptimizerKind::AdamW8bit => rounded(MAPS) + 2 * rounded(values) + 2 * rounded(4 * units),
    };
    let slowest = parameters.adam_beta1.max(parameters.adam_beta2);
    let corrections = steps.min((-CORRECTION_BITS * std::f64::consts::LN_2 / slowest.ln()).ceil() as u64);
    // Method and rates; addresses and lengths; the first unit of each; what is decided for a step; numbers of updates.
    let tables = [20, 32, 48 * count, 4 * (count + 1), 16 * (corrections + 1), 16 * count, 8 * count];
    moments + tables.map(rounded).iter().sum::<u64>()
}
