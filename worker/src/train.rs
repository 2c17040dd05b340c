//! `brightrun train`: a job file in, an adapter out.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use indicatif::MultiProgress;

use crate::{
    computer::DeviceOption,
    failure,
    input::{self, FetchOptions},
    job::{self, JobSpec, Overrides, ParameterFlags, Problem},
    life::revision,
    local_run::{self, LocalRun, Outcome, Places, Sole},
    progress::Progress,
    this_machine,
};

/// Longest job file that is read.
const MAX_JOB_BYTES: u64 = 16 << 20;

/// A request that the command line fills.
const EMPTY_JOB: &str = r#"{"input": {}}"#;

/// Name of a job that has none.
const FALLBACK_ID: &str = "job";

/// Where tokenised datasets are kept, unless the command line says otherwise.
pub(crate) const CACHE: &str = "brightrun-cache";

/// The command line of `brightrun train`.
#[derive(Args)]
pub(crate) struct Options {
    /// The job: a JSON file of the form {"input": {"dataset_url": ..., "hyperparameters": {...}}}. Without one, --dataset and
    /// --model say what is trained.
    #[arg(value_name = "JOB.json", required_unless_present_all = ["dataset", "model"])]
    job: Option<PathBuf>,
    /// The dataset, in place of the job's: a path, a URL, or demo:conversations.
    #[arg(long, value_name = "FILE|URL")]
    dataset: Option<String>,
    /// What is measured with, in place of the job's.
    #[arg(long, value_name = "FILE|URL")]
    validation: Option<String>,
    /// The base model, in place of the job's: a folder, or brightrun/demo-moe.
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// The job's name, in place of its own.
    #[arg(long, value_name = "NAME")]
    job_id: Option<String>,
    /// Where the files go [default: brightrun-output/<job_id>].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Where tokenised datasets are kept for the next run.
    #[arg(long, value_name = "DIR", default_value = CACHE)]
    cache: PathBuf,
    /// What an hour of this machine costs, in dollars [default: the job's cost_per_gpu_hour].
    #[arg(long, value_name = "USD", value_parser = price)]
    usd_per_hour: Option<f64>,
    #[command(flatten)]
    device: DeviceOption,
    /// Prints the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    fetching: FetchOptions,
    #[command(flatten)]
    parameters: ParameterFlags,
}

/// Runs the job of a command line.
pub(crate) fn train(options: &Options, terminal: MultiProgress) -> Outcome {
    let job = match asked_for(options).and_then(|job| all_there(&job).map(|()| job)) {
        Ok(job) => job,
        Err(problems) => return Outcome::Refused(problems),
    };
    let output = options.output.clone().unwrap_or_else(|| Path::new("brightrun-output").join(&job.job_id));
    run_job(&job, &output, options, terminal).unwrap_or_else(|error| Outcome::Failed(failure::told(&error)))
}

/// The job of a command line.
fn asked_for(options: &Options) -> Result<JobSpec, Vec<String>> {
    let overrides = Overrides {
        job_id: options.job_id.clone(),
        dataset: options.dataset.clone(),
        validation: options.validation.clone(),
        base_model: options.model.clone(),
        parameters: options.parameters.clone(),
    };
    match &options.job {
        Some(path) => read_job_with(path, &overrides),
        None => job::parse(EMPTY_JOB, &overrides, FALLBACK_ID).map_err(|problems| described(&problems)),
    }
}

/// The job of a file, or everything that is wrong with it.
pub(crate) fn read_job(path: &Path) -> Result<JobSpec, Vec<String>> {
    read_job_with(path, &Overrides::default())
}

fn read_job_with(path: &Path, overrides: &Overrides) -> Result<JobSpec, Vec<String>> {
    let text = read_limited(path).map_err(|error| vec![failure::told(&error)])?;
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let fallback = name.filter(|name| job::is_job_id(name)).unwrap_or(FALLBACK_ID);
    job::parse(&text, overrides, fallback).map_err(|problems| described(&problems))
}

/// What a job names on this machine is there, or all that is missing.
fn all_there(job: &JobSpec) -> Result<(), Vec<String>> {
    let validation = job.validation.as_ref().and_then(|dataset| dataset.check("validation_url"));
    let gpus = job.gpu.check(this_machine::gpus()).err();
    let missing = job.base_model.check().into_iter().chain(job.dataset.check("dataset_url")).chain(validation);
    let missing: Vec<Problem> = missing.chain(gpus).collect();
    if missing.is_empty() { Ok(()) } else { Err(described(&missing)) }
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.parse::<f64>().ok().filter(|price| (0.0..=10_000.0).contains(price));
    price.ok_or_else(|| "must be a number of dollars from 0 to 10000".to_owned())
}

fn described(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn read_limited(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read the job file {}", path.display());
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_JOB_BYTES + 1).read_to_string(&mut text)).with_context(context)?;
    anyhow::ensure!(text.len() as u64 <= MAX_JOB_BYTES, "{} is larger than 16 MiB", path.display());
    Ok(text)
}

fn run_job(job: &JobSpec, output: &Path, options: &Options, terminal: MultiProgress) -> anyhow::Result<Outcome> {
    let device = options.device.wanted().map_err(anyhow::Error::msg)?;
    let gpus = job.gpu.check(this_machine::gpus()).unwrap_or_default();
    let unused = [("upload_urls", !job.uploads.is_empty()), ("callback_url", job.callback.is_some())];
    let unused = unused.into_iter().filter(|(_, given)| *given);
    let unused = unused.map(|(name, _)| format!("{name} has no effect when a job is run from a file"));
    let warnings: Vec<String> = job.warnings.iter().cloned().chain(gpus).chain(unused).collect();
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    // Whoever goes on with the run may stand elsewhere.
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("{}", path.display()));
    let (output, cache) = (&*absolute(output)?, absolute(&options.cache)?);
    let sole = Sole::claim(output)?;
    let (model_dir, base_model_name) = input::base_model(&job.base_model, output)?;
    let usd_per_hour = options.usd_per_hour.or(job.gpu.usd_per_hour);
    let progress = Progress::new(terminal).at_price(usd_per_hour);
    let file = |dataset, purpose| input::dataset(dataset, purpose, output, &options.fetching, &progress);
    let validation = job.validation.as_ref().map(|dataset| file(dataset, "validation"));
    let places = Places {
        model_dir: absolute(&model_dir)?,
        base_model_name,
        base_model_asked: None,
        base_model_revision: revision(&model_dir),
        dataset: absolute(&file(&job.dataset, "dataset")?)?,
        validation_dataset: validation.transpose()?.as_deref().map(absolute).transpose()?,
        output_dir: output.to_owned(),
        cache_dir: cache,
    };
    let spec = local_run::spec(job, places, usd_per_hour, warnings);
    LocalRun(spec).carry_out(&sole, &progress, device)
}
