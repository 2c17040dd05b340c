//! The hyperparameters of a run, with the platform's defaults.

use serde::{Deserialize, Serialize};

/// Everything about a run that a user can choose. The worker checks ranges before a value gets here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls after the warm-up.
    pub schedule: ScheduleKind,
    /// How long the learning rate rises.
    pub warmup: Warmup,
    /// Sequences per optimiser step.
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
    pub base_precision: BasePrecision,
    /// Names in the adapter file.
    pub adapter_dialect: AdapterDialect,
    /// Numbers in the adapter file.
    pub adapter_dtype: AdapterDtype,
    /// Longest sequence, in tokens; longer conversations lose their oldest turns.
    pub max_seq_length: usize,
    /// The loss covers the whole text instead of the assistant's turns.
    pub train_on_prompt: bool,
    /// Share of the conversations that is kept for validation.
    pub validation_split: f64,
    /// Seeds adapter, dropout, order and split.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            schedule: ScheduleKind::Cosine,
            warmup: Warmup::Ratio(0.1),
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
            targets: TargetSet::Named(TargetName::Default),
            expert_rank: None,
            unhit_experts: UnhitExperts::Skip,
            router_aux_loss: false,
            base_precision: BasePrecision::Nf4,
            adapter_dialect: AdapterDialect::PerExpert,
            adapter_dtype: AdapterDtype::Bf16,
            max_seq_length: 2048,
            train_on_prompt: false,
            validation_split: 0.0,
            seed: 42,
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine, to zero.
    Cosine,
    /// A straight line, to zero.
    Linear,
    /// Not at all.
    Constant,
}

/// How long the learning rate rises from zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// So many optimiser steps.
    Steps(u64),
    /// This share of all optimiser steps.
    Ratio(f64),
}

/// The optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW with 32-bit states.
    AdamW,
    /// AdamW with 8-bit blockwise states.
    AdamW8bit,
}

/// Which linears get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetSet {
    /// A set with a name.
    Named(TargetName),
    /// Module names, with PEFT's suffix meaning.
    List(Vec<String>),
}

/// The sets with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetName {
    /// q k v o, `in_proj_qkvz`, `out_proj` and the shared expert.
    Default,
    /// The seven classic names: q k v o and gate, up, down of every expert.
    Classic,
    /// `Default` and the routed experts.
    All,
    /// `Default` without `in_proj_*`, which servers split.
    Servable,
    /// q k v o.
    Attention,
}

/// What an expert without a token in a step does with its optimiser state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnhitExperts {
    /// Nothing: the step did not happen for it (transformers 4).
    Skip,
    /// It sees a gradient of zero, so its momentum moves it on (transformers 5).
    Zero,
}

/// How the frozen base is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BasePrecision {
    /// NF4 with double quantisation.
    Nf4,
    /// As the checkpoint has it.
    Full,
}

/// Names in the adapter file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterDialect {
    /// One pair of matrices per expert (transformers 4, vLLM).
    PerExpert,
    /// Fused experts (transformers 5).
    Fused,
}

/// Numbers in the adapter file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterDtype {
    /// bfloat16.
    Bf16,
    /// float32.
    F32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_json_and_missing_ones_have_the_platforms_defaults() {
        let parameters = Parameters {
            warmup: Warmup::Steps(10),
            targets: TargetSet::List(vec!["q_proj".into(), "mlp.shared_expert.up_proj".into()]),
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
