//! The hyperparameters of a run, with the platform's defaults.

use serde::{Deserialize, Serialize};

use crate::dataset::report::Settings;
use crate::lora::{AdapterDtype, Dialect, LoraOptions, TargetSet};
use crate::optim::{OptimizerKind, OptimizerOptions, UnhitExperts};
use crate::schedule::{Decay, WarmUp};
use crate::weights::BasePrecision;

/// Most tokens of a micro-batch, where no single example is longer.
const MICRO_BATCH_TOKENS: usize = 4096;

/// Everything about a run that a user can choose. The worker checks ranges before a value gets here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls after the warm-up.
    pub schedule: Decay,
    /// How long the learning rate rises.
    pub warmup: WarmUp,
    /// Examples per optimiser step.
    pub batch_size: usize,
    /// Passes over the training data.
    pub num_epochs: u32,
    /// Ends the run after so many optimiser steps, whatever the epochs say.
    pub max_steps: Option<u64>,
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Rank of the adapter.
    pub lora_rank: usize,
    /// The adapter's scale is `alpha / rank` (`alpha / sqrt(rank)` with `use_rslora`).
    pub lora_alpha: f64,
    /// Dropout on the adapter's input.
    pub lora_dropout: f64,
    /// rsLoRA scaling.
    pub use_rslora: bool,
    /// Which linears get an adapter.
    pub targets: TargetSet,
    /// Rank in routed experts; `None`: `lora_rank / experts per token`, at least 1.
    pub expert_rank: Option<usize>,
    /// What an expert without a token in a step does with its optimiser state.
    pub unhit_experts: UnhitExperts,
    /// The router's load-balancing loss, weighted by the model's own coefficient, is part of the loss.
    pub router_aux_loss: bool,
    /// How the frozen base is kept.
    pub base_precision: PrecisionKind,
    /// Names in the adapter file.
    pub adapter_dialect: Dialect,
    /// Numbers in the adapter file.
    pub adapter_dtype: AdapterDtype,
    /// Longest example, in tokens; longer ones lose their oldest turns.
    pub max_seq_length: usize,
    /// Examples share micro-batches without padding.
    pub packing: bool,
    /// The loss covers the whole text instead of the assistant's turns.
    pub train_on_prompt: bool,
    /// The loss covers all assistant turns also where a line is one answer with its history.
    pub train_on_all_turns: bool,
    /// Share of the conversations that is kept for validation, where no validation file is given.
    pub validation_split: f64,
    /// Seeds adapter, dropout, order and split.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            schedule: Decay::Cosine,
            warmup: WarmUp::Ratio(0.1),
            batch_size: 4,
            num_epochs: 3,
            max_steps: None,
            optimizer: OptimizerKind::AdamW,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            lora_rank: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.05,
            use_rslora: false,
            targets: TargetSet::Default,
            expert_rank: None,
            unhit_experts: UnhitExperts::Skip,
            router_aux_loss: false,
            base_precision: PrecisionKind::Nf4,
            adapter_dialect: Dialect::PerExpert,
            adapter_dtype: AdapterDtype::Bf16,
            max_seq_length: 2048,
            packing: true,
            train_on_prompt: false,
            train_on_all_turns: false,
            validation_split: 0.1,
            seed: 42,
        }
    }
}

/// How the frozen base is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionKind {
    /// NF4 with double quantisation.
    Nf4,
    /// As `f32`.
    Full,
}

impl Parameters {
    /// The part that shapes the adapter.
    pub fn lora(&self) -> LoraOptions {
        LoraOptions {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            targets: self.targets.clone(),
            expert_rank: self.expert_rank,
        }
    }

    /// The part that shapes the optimiser.
    pub fn optimizer(&self) -> OptimizerOptions {
        OptimizerOptions {
            kind: self.optimizer,
            weight_decay: self.weight_decay,
            max_gradient_norm: (self.max_grad_norm > 0.0).then_some(self.max_grad_norm),
            unhit_experts: self.unhit_experts,
            ..OptimizerOptions::default()
        }
    }

    /// The part that decides what becomes of the dataset.
    pub fn dataset(&self) -> Settings {
        Settings {
            max_seq_length: self.max_seq_length,
            train_on_prompt: self.train_on_prompt,
            train_on_all_turns: self.train_on_all_turns,
            packing: self.packing,
            micro_batch_tokens: self.max_seq_length.max(MICRO_BATCH_TOKENS).try_into().unwrap_or(u32::MAX),
            batch_size: self.batch_size,
            num_epochs: self.num_epochs,
            max_steps: self.max_steps,
            validation_split: self.validation_split,
            seed: self.seed,
        }
    }

    /// How the base is loaded.
    pub fn precision(&self) -> BasePrecision {
        match self.base_precision {
            PrecisionKind::Nf4 => BasePrecision::nf4(),
            PrecisionKind::Full => BasePrecision::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_json_and_missing_ones_have_the_platforms_defaults() {
        let parameters = Parameters {
            warmup: WarmUp::Steps(10),
            targets: TargetSet::Named(vec!["q_proj".into(), "mlp.shared_expert.up_proj".into()]),
            ..Parameters::default()
        };
        let json = serde_json::to_string(&parameters).unwrap();
        assert_eq!(serde_json::from_str::<Parameters>(&json).unwrap(), parameters);
        let empty: Parameters = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, Parameters::default());
        assert_eq!((empty.lora_alpha, empty.lora_dropout, empty.max_seq_length), (32.0, 0.05, 2048));
        assert!(serde_json::from_str::<Parameters>(r#"{"targets":"everything"}"#).is_err());
    }
}
