//! A whole run: read the data and the model, take the steps, write the adapter, prove it.

mod closing;
mod data;
mod learner;
mod parameters;
mod reading;
mod rules;
#[cfg(test)]
mod tests;
mod training;
mod watch;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::Result;
use crate::checkpoint;
use crate::engine::Device;
use crate::events::{Event, Stage};
use crate::plan::Machine;
use closing::Before;
use learner::Learner;
use training::Training;
use watch::Watch;

pub use crate::engine::GpuToUse;
pub use data::{Data, DataSpec};
pub use parameters::{Parameters, PrecisionKind};
pub use watch::Surroundings;

/// Everything a run needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunSpec {
    /// Name of the job.
    pub job_id: String,
    /// Folder of the base model.
    pub model_dir: PathBuf,
    /// What the adapter's configuration calls the base model.
    pub base_model_name: String,
    /// The base model that the job asked for, where that is another name.
    pub base_model_asked: Option<String>,
    /// Revision of the base model, where that is known.
    #[serde(default)]
    pub base_model_revision: Option<String>,
    /// Training examples, in any of the known formats.
    pub dataset: PathBuf,
    /// Validation examples; without them `validation_split` of the training conversations.
    pub validation_dataset: Option<PathBuf>,
    /// Where the files go; it may exist.
    pub output_dir: PathBuf,
    /// Where tokenised datasets are kept for the next run; it may exist, and it may be emptied between runs.
    pub cache_dir: PathBuf,
    /// Where checkpoints of this job are kept until it is done; a run that was interrupted goes on from there.
    pub checkpoint_dir: PathBuf,
    /// What it runs on, for the plan; `None`: nothing is known and nothing is refused.
    pub machine: Option<Machine>,
    /// Dollars an hour of the machine, where that is known.
    pub usd_per_hour: Option<f64>,
    /// What its owner was told before it began; it stands in the result too.
    pub warnings: Vec<String>,
    /// The hyperparameters.
    pub parameters: Parameters,
}

/// What came out of a run.
#[derive(Debug, Clone, Serialize)]
pub struct RunSummary {
    /// Optimiser steps taken.
    pub steps: u64,
    /// Passes over the data, begun ones included.
    pub epochs: u32,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Smoothed loss after the last step.
    pub final_loss: f64,
    /// Validation loss after the last step.
    pub validation_loss: Option<f64>,
    /// The adapter is that of this step.
    pub adapter_step: u64,
    /// The platform's judgement, 1 to 5 stars.
    pub stars: u8,
    /// Parameters that were trained.
    pub trainable_parameters: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Folder of the adapter.
    pub adapter_dir: PathBuf,
    /// The picture of the losses.
    pub loss_curve: PathBuf,
    /// What there is to say about the dataset.
    pub dataset_report: PathBuf,
    /// The adapter's description for people.
    pub model_card: PathBuf,
    /// The result with all numbers and proofs.
    pub result: PathBuf,
    /// Everything the run's owner should know.
    pub warnings: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub enum RunEnd {
    /// The adapter is there.
    Finished(Box<RunSummary>),
    /// Somebody asked for a pause; the same run goes on from its checkpoint.
    Paused {
        /// Steps that are taken and saved; 0 where it was interrupted before the first.
        step: u64,
        /// Where the checkpoints are.
        checkpoint_dir: PathBuf,
    },
}

// === impl RunSpec ===

impl RunSpec {
    /// A job with nothing but what every one has: the base model is called by its folder, and everything that the run writes is in
    /// the output folder. Nothing is known of the machine.
    pub fn new(job_id: &str, model_dir: &Path, dataset: PathBuf, output_dir: PathBuf, parameters: Parameters) -> Self {
        Self {
            job_id: job_id.to_owned(),
            model_dir: model_dir.to_owned(),
            base_model_name: model_dir.display().to_string(),
            base_model_asked: None,
            base_model_revision: None,
            dataset,
            validation_dataset: None,
            cache_dir: output_dir.join("cache"),
            checkpoint_dir: output_dir.join("checkpoints"),
            output_dir,
            machine: None,
            usd_per_hour: None,
            warnings: Vec::new(),
            parameters,
        }
    }
}

/// Runs a job to its end, or on from where it was interrupted.
pub fn run(spec: &RunSpec, around: &Surroundings<'_>) -> Result<RunEnd> {
    let watch = &mut Watch::new(around, spec.warnings.clone());
    watch.saved_step = checkpoint::newest_step(&spec.checkpoint_dir, &*around.storage).unwrap_or(0);
    match whole(spec, watch) {
        Ok(summary) => Ok(RunEnd::Finished(Box::new(summary))),
        Err(Error::Cancelled) if watch.is_paused() => {
            Ok(RunEnd::Paused { step: watch.saved_step, checkpoint_dir: spec.checkpoint_dir.clone() })
        }
        Err(error) => Err(error),
    }
}

fn whole(spec: &RunSpec, watch: &mut Watch) -> Result<RunSummary> {
    watch.go_on()?;
    watch.stage(Stage::Fetching);
    let data = reading::data(spec, watch)?;
    watch.stage(Stage::Loading);
    // A machine that computes wrongly is found out before anything is paid for.
    let device = Device::open(watch.around.gpu)?;
    let ops = device.self_test(spec.parameters.seed)?;
    let (learner, mut engine) = Learner::load(spec, &data, device, watch)?;
    learner.plan.warnings().into_iter().for_each(|warning| watch.warn(warning));
    let before = Before { ops, base: engine.digest(watch.around.stop)?, adapter: learner.adapters.digest()? };
    let mut training = Training::begin(spec, &data, &learner, &mut *engine, &before, watch)?;
    watch.emit(&Event::Started {
        trainable_parameters: learner.adapters.parameter_count(),
        base_parameters: learner.base_parameters(),
        sequences: data.report().split.training.examples,
        validation_sequences: data.report().split.validation.examples,
        steps: training.total,
        epochs: spec.parameters.num_epochs,
    });
    training.run(watch)?;
    let mut summary = closing::close(spec, &data, &learner, &mut training, before, watch)?;
    drop(training);
    closing::clear(&spec.checkpoint_dir, &mut summary, watch);
    Ok(summary)
}

/// The folder of the adapter in that of the job.
pub const ADAPTER_DIR: &str = "adapter";
