//! A whole run: read the data and the model, take the steps, write the adapter.

mod data;
mod parameters;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::adapters::Adapters;
use crate::artifacts::atomic;
use crate::artifacts::history::{History, METRICS_FILE};
use crate::artifacts::loss_curve::{LossCurve, SVG_FILE};
use crate::config::ModelConfig;
use crate::dataset::report::REPORT_FILE;
use crate::events::{Event, EventSink, Stage, StepMetrics, StepTime};
use crate::lora::{self, AdapterFormat, LoraPlan};
use crate::model::Model;
use crate::optim::Optimizer;
use crate::schedule::Schedule;
use crate::step::{Gradients, Position, Recompute, StepOptions, accumulate, evaluate};
use crate::weights::{Checkpoint, expected_tensors};
use crate::{Error, Result};

pub use data::{Data, DataSpec};
pub use parameters::{Parameters, PrecisionKind};

/// Everything a run needs to know.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Name of the job.
    pub job_id: String,
    /// Folder of the base model.
    pub model_dir: PathBuf,
    /// What the adapter's configuration calls the base model.
    pub base_model_name: String,
    /// Training examples, in any of the known formats.
    pub dataset: PathBuf,
    /// Validation examples; without them `validation_split` of the training conversations.
    pub validation_dataset: Option<PathBuf>,
    /// Where the files go; it may exist.
    pub output_dir: PathBuf,
    /// Where tokenised datasets are kept for the next run; it may exist, and it may be emptied between runs.
    pub cache_dir: PathBuf,
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
    /// What there is to say about the dataset.
    pub dataset_report: PathBuf,
    /// Everything the run's owner should know.
    pub warnings: Vec<String>,
}

/// Share of the old value in each update of the smoothed loss.
const SMOOTHING: f64 = 0.9;

/// Runs a job to its end.
pub fn run(spec: &RunSpec, sink: &dyn EventSink) -> Result<RunSummary> {
    let mut watch = Watch { sink, history: History::default(), warnings: Vec::new() };
    watch.stage(Stage::Fetching)?;
    let data = read_data(spec, &mut watch)?;
    watch.stage(Stage::Loading)?;
    let learner = Learner::load(spec)?;
    for warning in learner.plan.warnings() {
        watch.warn(warning)?;
    }
    let outcome = train(spec, &data, &learner, &mut watch)?;
    watch.stage(Stage::Saving)?;
    save(spec, &learner, &watch)?;
    watch.emit(Event::Finished { steps: outcome.steps, final_loss: outcome.smoothed_loss })?;
    Ok(RunSummary {
        steps: outcome.steps,
        epochs: outcome.epochs,
        first_loss: outcome.first_loss,
        final_loss: outcome.smoothed_loss,
        validation_loss: outcome.validation_loss,
        trainable_parameters: learner.adapters.parameter_count(),
        tokens: outcome.tokens,
        adapter_dir: spec.output_dir.join(ADAPTER_DIR),
        loss_curve: spec.output_dir.join(SVG_FILE),
        dataset_report: spec.output_dir.join(REPORT_FILE),
        warnings: watch.warnings,
    })
}

const ADAPTER_DIR: &str = "adapter";

/// Everything that leaves the run while it goes.
struct Watch<'a> {
    sink: &'a dyn EventSink,
    history: History,
    warnings: Vec<String>,
}

/// What learns.
struct Learner {
    config: ModelConfig,
    plan: LoraPlan,
    adapters: Adapters,
    model: Model,
}

/// Where a run stands.
#[derive(Default)]
struct Outcome {
    steps: u64,
    epochs: u32,
    first_loss: f64,
    smoothed_loss: f64,
    validation_loss: Option<f64>,
    tokens: u64,
}

// === impl Watch ===

impl Watch<'_> {
    fn emit(&mut self, event: Event) -> Result<()> {
        self.history.record(&event);
        self.sink.emit(&event);
        Ok(())
    }

    fn stage(&mut self, stage: Stage) -> Result<()> {
        self.emit(Event::Stage { stage })
    }

    fn warn(&mut self, message: String) -> Result<()> {
        self.warnings.push(message.clone());
        self.emit(Event::Warning { message })
    }

    fn step(&mut self, metrics: StepMetrics) -> Result<()> {
        self.emit(Event::Step(metrics))
    }
}

/// Reads the dataset and leaves its report, also where the dataset is refused.
fn read_data(spec: &RunSpec, watch: &mut Watch) -> Result<Data> {
    let input = DataSpec {
        dataset: &spec.dataset,
        validation_dataset: spec.validation_dataset.as_deref(),
        model_dir: &spec.model_dir,
        stand_in_model: false,
        cache_dir: &spec.cache_dir,
        parameters: &spec.parameters,
    };
    let sink = watch.sink;
    let data = Data::read(&input, &|bytes, total| sink.emit(&Event::Reading { bytes, total }))?;
    fs::create_dir_all(&spec.output_dir).map_err(Error::io("cannot create", &spec.output_dir))?;
    let report = spec.output_dir.join(REPORT_FILE);
    data.report().write(&report)?;
    if let Some(refusal) = data.report().refusal(&report) {
        return Err(refusal);
    }
    data.warnings().into_iter().try_for_each(|warning| watch.warn(warning))?;
    Ok(data)
}

// === impl Learner ===

impl Learner {
    fn load(spec: &RunSpec) -> Result<Self> {
        let config = ModelConfig::read(&spec.model_dir)?;
        let checkpoint = Checkpoint::open(&spec.model_dir, &config)?;
        let plan = lora::plan(&config, &spec.parameters.lora())?;
        let adapters = Adapters::new(&config, &plan, spec.parameters.seed)?;
        let model = Model::load(&config, &checkpoint, &spec.parameters.precision(), &adapters)?;
        Ok(Self { config, plan, adapters, model })
    }

    fn base_parameters(&self) -> u64 {
        expected_tensors(&self.config)
            .iter()
            .map(|tensor| tensor.shape.iter().map(|n| *n as u64).product::<u64>())
            .sum()
    }
}

fn train(spec: &RunSpec, data: &Data, learner: &Learner, watch: &mut Watch) -> Result<Outcome> {
    let parameters = &spec.parameters;
    let total = data.report().steps.total;
    let schedule = Schedule::new(parameters.learning_rate, parameters.schedule, parameters.warmup, total)?;
    let mut optimizer = Optimizer::new(&learner.adapters, parameters.optimizer());
    let options = StepOptions {
        recompute: Recompute::Layers,
        dropout: parameters.lora_dropout as f32,
        seed: parameters.seed,
        neftune_alpha: parameters.neftune_noise_alpha as f32,
        aux_coefficient: parameters.router_aux_loss.then_some(learner.config.moe.aux_loss_coefficient),
    };
    watch.emit(Event::Started {
        trainable_parameters: learner.adapters.parameter_count(),
        base_parameters: learner.base_parameters(),
        sequences: data.report().split.training.examples,
        validation_sequences: data.report().split.validation.examples,
        steps: total,
        epochs: parameters.num_epochs,
    })?;
    watch.stage(Stage::Training)?;
    let mut outcome = Outcome::default();
    for epoch in 1..=parameters.num_epochs {
        for documents in data.epoch(epoch) {
            if outcome.steps == total {
                break;
            }
            outcome.epochs = epoch;
            let learning_rate = schedule.learning_rate(outcome.steps);
            let taken = take_step(learner, data, &documents, &options, outcome.steps, &mut optimizer, learning_rate)?;
            outcome.add(taken.loss, taken.tokens);
            watch.step(StepMetrics {
                step: outcome.steps,
                epoch,
                progress: 100.0 * outcome.steps as f64 / total as f64,
                loss: taken.loss,
                smoothed_loss: outcome.smoothed_loss,
                learning_rate,
                gradient_norm: taken.gradient_norm,
                tokens: taken.tokens,
                target_tokens: taken.target_tokens,
                tokens_per_second: 0.0,
                time: StepTime::default(),
                peak_memory_bytes: None,
                experts: None,
            })?;
        }
        if data.has_validation() && outcome.epochs == epoch {
            watch.stage(Stage::Evaluating)?;
            let loss = validate(learner, data)?;
            let best = outcome.validation_loss.is_none_or(|before| loss < before);
            outcome.validation_loss = Some(loss);
            watch.emit(Event::Evaluation { step: outcome.steps, loss, perplexity: loss.exp(), best, seconds: 0.0 })?;
            watch.stage(Stage::Training)?;
        }
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, loss: f64, tokens: u64) {
        if self.steps == 0 {
            (self.first_loss, self.smoothed_loss) = (loss, loss);
        }
        self.smoothed_loss = SMOOTHING * self.smoothed_loss + (1.0 - SMOOTHING) * loss;
        self.steps += 1;
        self.tokens += tokens;
    }
}

struct Taken {
    loss: f64,
    gradient_norm: f64,
    tokens: u64,
    target_tokens: u64,
}

/// One optimiser step over some documents. Its micro-batches are read when it is their turn.
fn take_step(
    learner: &Learner,
    data: &Data,
    documents: &[u32],
    options: &StepOptions,
    step: u64,
    optimizer: &mut Optimizer,
    learning_rate: f64,
) -> Result<Taken> {
    let number = step + 1;
    let targets = data.targets(documents);
    let bins = data.training_bins(documents)?;
    let mut gradients = Gradients::new(&learner.adapters);
    let (mut loss_sum, mut seen) = (0.0, 0);
    for (index, bin) in bins.iter().enumerate() {
        let batch = data.training_batch(bin)?;
        let position = Position { step, micro_batch: index as u64, micro_batches: bins.len() as u64 };
        let report = accumulate(&learner.model, &batch, options, position, targets, &mut gradients)?;
        loss_sum += report.loss_sum;
        seen += report.targets;
    }
    same_targets(seen as u64, targets as u64)?;
    let loss = loss_sum / targets as f64;
    if !loss.is_finite() {
        return Err(Error::Invalid(format!("the loss of step {number} is {loss}; try a lower learning rate")));
    }
    // A norm that is not finite is refused by the optimiser before it changes anything.
    let gradient_norm = optimizer.step(&gradients, learning_rate)?.gradient_norm;
    Ok(Taken { loss, gradient_norm, tokens: data.tokens(documents), target_tokens: targets as u64 })
}

/// The mean loss of the validation side.
fn validate(learner: &Learner, data: &Data) -> Result<f64> {
    let (mut loss_sum, mut targets) = (0.0, 0);
    for bin in data.validation_bins() {
        let report = evaluate(&learner.model, &data.validation_batch(bin)?, false)?;
        loss_sum += report.loss_sum;
        targets += report.targets;
    }
    same_targets(targets as u64, data.report().split.validation.learnt_tokens)?;
    Ok(loss_sum / targets as f64)
}

/// What was read from the store is what its list of documents says.
fn same_targets(seen: u64, expected: u64) -> Result<()> {
    if seen == expected {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the tokenised dataset has {seen} targets where its list says {expected}; empty the cache folder and run again"
    )))
}

fn save(spec: &RunSpec, learner: &Learner, watch: &Watch) -> Result<()> {
    let format = AdapterFormat { dialect: spec.parameters.adapter_dialect, dtype: spec.parameters.adapter_dtype };
    let tensors = learner.adapters.tensors()?;
    let dir = spec.output_dir.join(ADAPTER_DIR);
    lora::write(&dir, &learner.config, &learner.plan, &tensors, format, &spec.base_model_name)?;
    atomic::write(&spec.output_dir.join(METRICS_FILE), &watch.history.to_bytes()?)?;
    let curve = LossCurve::new(&watch.history, &format!("Training loss of {}", spec.job_id))?;
    atomic::write(&spec.output_dir.join(SVG_FILE), curve.svg().as_bytes())
}
