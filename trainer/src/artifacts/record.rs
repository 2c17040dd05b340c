//! What a run's artifacts are made of.

use std::path::Path;

use super::{
    history::History,
    quality::Quality,
    result::{Cost, FileFact, FinalMetrics, ModelMetadata, Program, Proof, RunResult, RunStatus},
};
use crate::{dataset::report::DatasetReport, lora::LoraPlan, run::Parameters};

/// A run that is over, as its artifacts tell it. With the same record the artifacts have the same bytes.
#[derive(Debug, Clone, Copy)]
pub struct RunRecord<'a> {
    /// Name of the job.
    pub job_id: &'a str,
    /// How it ended.
    pub status: RunStatus,
    /// What failed, why and what to do; of a run that failed.
    pub error: Option<&'a str>,
    /// What made it.
    pub program: &'a Program,
    /// The base model.
    pub base: &'a BaseModel,
    /// Everything that was measured.
    pub history: &'a History,
    /// The settings.
    pub parameters: &'a Parameters,
    /// What was adapted.
    pub plan: &'a LoraPlan,
    /// What it learnt from.
    pub dataset: &'a DatasetReport,
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Parameters that were trained.
    pub trainable_parameters: u64,
    /// The step after which the saved adapter was taken: the last one, or the best where that is kept.
    pub adapter_step: u64,
    /// When the job was begun for the first time, in seconds since 1970.
    pub started_at: f64,
    /// Steps between two evaluations, where that is fixed.
    pub eval_steps: u64,
    /// Steps between two checkpoints, where that is fixed.
    pub save_steps: Option<u64>,
    /// The adapter's folder inside the output folder, or `.` where they are one.
    pub adapter_folder: &'a str,
    /// Files that are there already and belong to the result: the adapter's own two, the dataset's report.
    pub written: &'a [FileFact],
    /// What was checked.
    pub proof: &'a Proof,
    /// Everything the run's owner should know.
    pub warnings: &'a [String],
    /// What it cost, where that is known.
    pub cost: Option<Cost>,
}

/// The base model of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseModel {
    /// The one that the job asked for, where it did.
    pub asked: Option<String>,
    /// What the adapter's configuration calls the one that was used.
    pub name: String,
    /// Its folder, where its tokenizer is.
    pub path: std::path::PathBuf,
    /// Its revision, where that is known.
    pub revision: Option<String>,
    /// SHA-256 of its weights, where that is known.
    pub sha256: Option<String>,
    /// Licence of the base by its SPDX or Hub name, where that is known.
    pub license: Option<String>,
}

// === impl RunRecord ===

impl RunRecord<'_> {
    /// The result, with these files beside it.
    pub fn result(&self, files: Vec<FileFact>) -> RunResult {
        let summary = self.history.summary();
        RunResult {
            status: self.status,
            job_id: self.job_id.to_owned(),
            error: self.error.map(str::to_owned),
            progress: if self.status == RunStatus::Success { 100.0 } else { summary.progress },
            current_epoch: summary.epochs,
            current_step: summary.steps,
            model_metadata: ModelMetadata {
                base_model: self.base.name.clone(),
                base_model_asked: self.base.asked.clone(),
                base_model_path: Some(self.base.path.display().to_string()),
                base_model_revision: self.base.revision.clone(),
                base_model_sha256: self.base.sha256.clone(),
                base_parameters: self.base_parameters,
                trainable_parameters: self.trainable_parameters,
                lora_rank: self.plan.options.rank,
                lora_alpha: self.plan.options.alpha,
                adapter_dialect: self.parameters.adapter_dialect,
                adapter_dtype: self.parameters.adapter_dtype,
                adapter_step: self.adapter_step,
                final_loss: summary.final_loss,
                training_time: summary.training_seconds + summary.evaluation_seconds,
                program: self.program.clone(),
                warnings: self.warnings.to_vec(),
            },
            metrics: FinalMetrics::of(&summary),
            quality: Quality::of_history(self.history),
            summary,
            cost: self.cost,
            warnings: self.warnings.to_vec(),
            proven: self.proof.proven(),
            failed_checks: self.proof.failures(),
            proof: self.proof.clone(),
            files,
        }
    }

    /// The adapter's folder.
    pub(super) fn adapter_dir(&self, dir: &Path) -> std::path::PathBuf {
        dir.join(self.adapter_folder)
    }
}
