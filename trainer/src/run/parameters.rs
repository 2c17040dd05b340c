//! The hyperparameters of a run, with the platform's defaults.

use std::path::PathBuf;

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
    /// Examples of a batch.
    pub batch_size: usize,
    /// Batches of an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Most tokens of a micro-batch, where no single example is longer; `None`: planned.
    pub micro_batch_tokens: Option<usize>,
    /// Layers are computed again for the backward pass; `None`: planned.
    pub recompute: Option<bool>,
    /// Passes over the training data.
    pub num_epochs: u32,
    /// Ends the run after so many optimiser steps, whatever the epochs say.
    pub max_steps: Option<u64>,
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// Decay of the optimiser's first moment.
    pub adam_beta1: f64,
    /// Decay of its second moment.
    pub adam_beta2: f64,
    /// Added to the root of its second moment.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// The learning rate of every `B` over that of `A`, which is `learning_rate` (LoRA+).
    pub loraplus_lr_ratio: f64,
    /// Noise on the embeddings while training (NEFTune); 0 for none.
    pub neftune_noise_alpha: f64,
    /// An adapter to go on from, instead of a fresh one.
    pub init_adapter: Option<PathBuf>,
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
    /// The validation loss is measured after so many optimiser steps; `None`: after `eval_epochs`.
    pub eval_steps: Option<u64>,
    /// The validation loss is measured after so many passes over the data.
    pub eval_epochs: u32,
    /// Ends the run after so many evaluations without a better validation loss.
    pub early_stopping_patience: Option<u32>,
    /// A validation loss is better if it is lower by more than this.
    pub early_stopping_threshold: f64,
    /// The adapter of the best evaluation is delivered instead of the last one; `None`: with early stopping.
    pub load_best_at_end: Option<bool>,
    /// Ends the run when the mean loss has grown to so many times its lowest; 0: never.
    pub max_loss_growth: f64,
    /// A checkpoint after so many optimiser steps.
    pub save_steps: Option<u64>,
    /// A checkpoint after so many minutes; 0: never.
    pub save_minutes: f64,
    /// So many checkpoints are kept, besides the best one.
    pub keep_checkpoints: usize,
    /// Seeds adapter, dropout, noise, order and split.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            schedule: Decay::Cosine,
            warmup: WarmUp::Ratio(0.1),
            batch_size: 4,
            gradient_accumulation_steps: 1,
            micro_batch_tokens: None,
            recompute: None,
            num_epochs: 3,
            max_steps: None,
            optimizer: OptimizerKind::AdamW,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            loraplus_lr_ratio: 1.0,
            neftune_noise_alpha: 0.0,
            init_adapter: None,
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
            eval_steps: None,
            eval_epochs: 1,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            load_best_at_end: None,
            max_loss_growth: 3.0,
            save_steps: None,
            save_minutes: 10.0,
            keep_checkpoints: 2,
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
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            max_gradient_norm: (self.max_grad_norm > 0.0).then_some(self.max_grad_norm),
            unhit_experts: self.unhit_experts,
        }
    }

    /// The part that decides what becomes of the dataset.
    pub fn dataset(&self) -> Settings {
        Settings {
            max_seq_length: self.max_seq_length,
            train_on_prompt: self.train_on_prompt,
            train_on_all_turns: self.train_on_all_turns,
            packing: self.packing,
            micro_batch_tokens: self.micro_batch_tokens().try_into().unwrap_or(u32::MAX),
            batch_size: self.examples_per_step(),
            num_epochs: self.num_epochs,
            max_steps: self.max_steps,
            validation_split: self.validation_split,
            seed: self.seed,
        }
    }

    /// Examples of an optimiser step.
    pub fn examples_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// Most tokens of a micro-batch, an example's own length excepted.
    pub fn micro_batch_tokens(&self) -> usize {
        self.micro_batch_tokens.unwrap_or(MICRO_BATCH_TOKENS).max(self.max_seq_length)
    }

    /// Optimiser steps from one evaluation to the next; there is one more after the last step.
    pub fn evaluation_interval(&self, steps_per_epoch: u64) -> u64 {
        self.eval_steps.unwrap_or_else(|| steps_per_epoch.saturating_mul(u64::from(self.eval_epochs))).max(1)
    }

    /// Whether the adapter of the best evaluation is delivered.
    pub fn delivers_best(&self) -> bool {
        self.load_best_at_end.unwrap_or(self.early_stopping_patience.is_some())
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
