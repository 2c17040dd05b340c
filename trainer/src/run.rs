//! A whole run: read the data and the model, take the steps, write the adapter.

mod parameters;

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    Result,
    dataset::format,
    events::{Event, EventSink, Stage},
};

pub use parameters::{
    AdapterDialect, AdapterDtype, BasePrecision, OptimizerKind, Parameters, ScheduleKind, TargetName, TargetSet,
    UnhitExperts, Warmup,
};

/// Everything a run needs to know.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Name of the job.
    pub job_id: String,
    /// Folder of the base model.
    pub model_dir: PathBuf,
    /// What the adapter's configuration calls the base model.
    pub base_model_name: String,
    /// Training conversations, one JSON object a line.
    pub dataset: PathBuf,
    /// Validation conversations; without them `validation_split` of the training ones.
    pub validation_dataset: Option<PathBuf>,
    /// Where the files go; it may exist.
    pub output_dir: PathBuf,
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
    /// Parameters that were trained.
    pub trainable_parameters: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Folder of the adapter.
    pub adapter_dir: PathBuf,
    /// The picture of the losses.
    pub loss_curve: PathBuf,
    /// Everything the run's owner should know.
    pub warnings: Vec<String>,
}

/// Runs a job to its end.
pub fn run(spec: &RunSpec, sink: &dyn EventSink) -> Result<RunSummary> {
    sink.emit(&Event::Stage { stage: Stage::Fetching });
    format::read_conversations(&spec.dataset)?;
    Err(crate::Error::Invalid(format!("job {}: the training loop is not part of this build", spec.job_id)))
}
