//! LoRA: which linears are adapted, with which rank and scale, and the adapter files real PEFT reads and writes.
//!
//! An adapted linear computes `y = W x + scale * B (A x)` with `A [rank, in]`, `B [out, rank]` and
//! `scale = alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.

mod cover;
mod file;
mod fused;
mod layout;
mod peft;
mod read;
mod targets;
mod tensors;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use file::{AdapterDtype, AdapterFormat, CONFIG_FILE, Dialect, TENSORS_FILE, write};
pub use read::read;
pub use targets::{TargetSet, resolve};
pub use tensors::{Adapter, AdapterTensors, Matrix};

use crate::config::ModelConfig;
use crate::weights::{TensorKind, TensorSpec, is_routed_expert};
use crate::{Error, Result};

/// The largest rank.
pub const MAX_RANK: usize = 4096;
/// The largest `alpha`.
pub const MAX_ALPHA: f64 = 1e6;

/// What a job says about its adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraOptions {
    /// Rank of every adapted linear that is no routed expert's.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Probability that a value on its way into `A` is dropped while training.
    pub dropout: f64,
    /// The scale is `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub use_rslora: bool,
    /// Which linears are adapted.
    pub targets: TargetSet,
    /// Rank of the routed experts; by default `rank` divided by the experts per token, at least 1.
    pub expert_rank: Option<usize>,
}

/// The adapter of one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleLora {
    /// The linear's module path, as in `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Columns of the linear's weight and of `A`.
    pub inputs: usize,
    /// Rows of the linear's weight and of `B`.
    pub outputs: usize,
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// What `B (A x)` is multiplied with.
    pub scale: f64,
}

/// Every adapted linear, in the order of the model's modules.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPlan {
    /// What was asked for, or what an adapter's files say was.
    pub options: LoraOptions,
    /// The adapted linears.
    pub modules: Vec<ModuleLora>,
}

// === impl LoraPlan ===

impl LoraPlan {
    /// What whoever uses the adapter should know of it; nothing as a rule.
    pub fn warnings(&self) -> Vec<String> {
        let experts = self.modules.iter().filter(|module| is_routed_expert(&module.path));
        let rank = self.options.rank;
        match experts.map(|module| module.rank).max() {
            Some(largest) if largest > rank => vec![format!(
                "expert_rank {largest} is above lora_rank {rank}: inference servers that size their buffers by `r` \
                 ({rank} in adapter_config.json) cannot hold the experts' matrices; PEFT can. Choose an expert_rank of \
                 at most lora_rank, or a larger lora_rank, if the adapter is to be served"
            )],
            _ => Vec::new(),
        }
    }
}

/// Decides rank and scale of every linear that `options` adapts.
///
/// Routed experts see a fraction of the tokens and so get a smaller rank. Their `alpha` is chosen so that their scale is
/// that of all other modules.
pub fn plan(config: &ModelConfig, options: &LoraOptions) -> Result<LoraPlan> {
    options.check()?;
    let expert_rank = options.expert_rank.unwrap_or((options.rank / config.moe.per_token).max(1));
    let share = expert_rank as f64 / options.rank as f64;
    let expert_alpha = options.alpha * if options.use_rslora { share.sqrt() } else { share };
    let adapt = |linear: Linear| {
        let (rank, alpha) = match is_routed_expert(&linear.path) {
            true => (expert_rank, expert_alpha),
            false => (options.rank, options.alpha),
        };
        linear.adapted(rank, alpha, options.use_rslora)
    };
    let modules = targets::resolve_linears(config, &options.targets)?.into_iter().map(adapt).collect();
    Ok(LoraPlan { options: options.clone(), modules })
}

// === impl LoraOptions ===

impl LoraOptions {
    fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        for (name, rank) in [("rank", Some(self.rank)), ("expert_rank", self.expert_rank)] {
            if let Some(rank) = rank.filter(|rank| !(1..=MAX_RANK).contains(rank)) {
                problems.push(format!("{name}: found {rank}, expected an integer in 1..={MAX_RANK}"));
            }
        }
        // Negated comparisons, so that NaN is refused too.
        if !(self.alpha > 0.0 && self.alpha <= MAX_ALPHA) {
            problems.push(format!("alpha: found {}, expected a number above 0 and up to {MAX_ALPHA}", self.alpha));
        }
        if !(self.dropout >= 0.0 && self.dropout < 1.0) {
            problems.push(format!("dropout: found {}, expected a number from 0 and below 1", self.dropout));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(crate::error::listed(&problems))) }
    }
}

/// A linear of the model that may be adapted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Linear {
    path: String,
    inputs: usize,
    outputs: usize,
}

// === impl Linear ===

impl Linear {
    /// Every linear among the tensors of a model, in the order of its modules.
    fn among(tensors: &[TensorSpec]) -> Vec<Self> {
        let linear = |tensor: &TensorSpec| {
            let path = tensor.module().filter(|_| tensor.kind == TensorKind::Linear)?;
            Some(Self { path: path.to_owned(), inputs: tensor.shape[1], outputs: tensor.shape[0] })
        };
        tensors.iter().filter_map(linear).collect()
    }

    fn adapted(self, rank: usize, alpha: f64, use_rslora: bool) -> ModuleLora {
        let scale = scale(rank, alpha, use_rslora);
        ModuleLora { path: self.path, inputs: self.inputs, outputs: self.outputs, rank, alpha, scale }
    }
}

/// PEFT's rule.
fn scale(rank: usize, alpha: f64, use_rslora: bool) -> f64 {
    alpha / if use_rslora { (rank as f64).sqrt() } else { rank as f64 }
}
