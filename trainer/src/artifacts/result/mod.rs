//! `result.json`: how a run ended, in the words of the platform, with the evidence.

mod proof;

use serde::{Deserialize, Serialize};

pub use proof::{BaseCheck, Proof, ReloadCheck};

use super::{
    history::{Summary, finite},
    quality::{MAX_REPORTED, Quality},
};

/// The name of the file in a job's output folder.
pub const RESULT_FILE: &str = "result.json";

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// In one word.
    pub status: RunStatus,
    /// Name of the job.
    pub job_id: String,
    /// What failed, why and what to do; the platform takes a result for a failure only where this stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Share of the planned steps that was taken, 0 to 100; 100 of a run that ended well.
    pub progress: f64,
    /// Passes over the data, begun ones included.
    pub current_epoch: u32,
    /// Optimiser steps taken.
    pub current_step: u64,
    /// What was trained on what.
    pub model_metadata: ModelMetadata,
    /// The last numbers, under the platform's names.
    pub metrics: FinalMetrics,
    /// The platform's judgement.
    pub quality: Quality,
    /// Everything that follows from the measurements.
    pub summary: Summary,
    /// What it cost, where that is known.
    pub cost: Option<Cost>,
    /// Everything the run's owner should know.
    pub warnings: Vec<String>,
    /// Every check was made and held.
    pub proven: bool,
    /// The checks that did not hold, or were not made.
    pub failed_checks: Vec<String>,
    /// The checks.
    pub proof: Proof,
    /// The files beside this one.
    pub files: Vec<FileFact>,
}

/// How a run ended, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// All steps were taken, or a rule ended it early and well.
    Success,
    /// Something is wrong.
    Failed,
    /// Somebody stopped it; it can go on.
    Paused,
    /// Somebody stopped it for good.
    Cancelled,
}

/// What was trained on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// The base model that was used, by name.
    pub base_model: String,
    /// The one that the job asked for, where it did.
    pub base_model_asked: Option<String>,
    /// Its folder.
    pub base_model_path: Option<String>,
    /// Its revision, where that is known.
    pub base_model_revision: Option<String>,
    /// SHA-256 of its weights.
    pub base_model_sha256: Option<String>,
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Parameters that were trained.
    pub trainable_parameters: u64,
    /// Rank of the adapter.
    pub lora_rank: usize,
    /// Numerator of its scale.
    pub lora_alpha: f64,
    /// Names in its file.
    pub adapter_dialect: crate::lora::Dialect,
    /// Numbers in its file.
    pub adapter_dtype: crate::lora::AdapterDtype,
    /// The step after which the saved adapter was taken.
    pub adapter_step: u64,
    /// Smoothed training loss at the end.
    pub final_loss: Option<f64>,
    /// Seconds that steps and evaluations took.
    pub training_time: f64,
    /// What made it.
    pub program: Program,
    /// Everything the run's owner should know; the platform looks for it here.
    pub warnings: Vec<String>,
}

/// What made a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The last numbers of a run. Those that the platform would refuse are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FinalMetrics {
    /// Smoothed training loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_loss: Option<f64>,
    /// Training loss of the last step alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_loss_raw: Option<f64>,
    /// Last validation loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Learning rate of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Tokens a second, over all steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<f64>,
    /// Gradient norm of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
}

/// What a run cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds times GPUs.
    pub gpu_seconds: f64,
    /// In US dollars.
    pub usd: f64,
}

/// A file of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFact {
    /// Its name, from the output folder on, with `/` between folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

// === impl FinalMetrics ===

impl FinalMetrics {
    /// The last numbers of a run.
    pub fn of(summary: &Summary) -> Self {
        let told = |number: Option<f64>| number.and_then(finite).filter(|number| *number < MAX_REPORTED);
        Self {
            training_loss: told(summary.final_loss),
            training_loss_raw: told(summary.last_loss),
            validation_loss: told(summary.last_validation_loss),
            learning_rate: told(summary.last_learning_rate),
            throughput: summary.mean_tokens_per_second.and_then(finite),
            gradient_norm: told(summary.last_gradient_norm),
        }
    }
}

// === impl FileFact ===

impl FileFact {
    /// What there is to say about a file with these bytes.
    pub fn of(name: impl Into<String>, bytes: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { name: name.into(), bytes: bytes.len() as u64, sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_is_not_told_what_it_refuses() {
        let summary = Summary {
            final_loss: Some(10_000.0),
            last_loss: Some(9_999.0),
            last_gradient_norm: Some(1e6),
            mean_tokens_per_second: Some(123_456.0),
            ..Summary::default()
        };
        let json = serde_json::to_string(&FinalMetrics::of(&summary)).unwrap();
        assert_eq!(json, r#"{"training_loss_raw":9999.0,"throughput":123456.0}"#);
        assert_eq!(serde_json::from_str::<FinalMetrics>("{}").unwrap(), FinalMetrics::default());
    }

    #[test]
    fn a_file_is_known_by_its_hash() {
        let fact = FileFact::of("a/b.txt", b"abc");
        assert_eq!(fact.bytes, 3);
        assert_eq!(fact.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
