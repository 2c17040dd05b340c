//! `brightrun train`: a job file in, an adapter out.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use brightrun_trainer::run::{self, RunSpec, RunSummary};
use clap::Args;
use indicatif::MultiProgress;

use crate::{
    input::{self, FetchOptions},
    job::{self, JobSpec, Overrides, ParameterFlags, Problem},
    progress::Progress,
};

/// Longest job file that is read.
const MAX_JOB_BYTES: u64 = 16 << 20;

/// A request that the command line fills.
const EMPTY_JOB: &str = r#"{"input": {}}"#;

/// Name of a job that has none.
const FALLBACK_ID: &str = "job";

/// Where tokenised datasets are kept, unless the command line says otherwise.
pub(crate) const CACHE: &str = "brightrun-cache";

/// How a job ended.
pub(crate) enum Outcome {
    /// The adapter is there.
    Done {
        /// Name of the job.
        job_id: String,
        /// What came out.
        summary: Box<RunSummary>,
        /// How long it took.
        time: Duration,
    },
    /// The job cannot be run as it is.
    Refused(Vec<String>),
    /// The run failed.
    Failed(String),
}

impl Outcome {
    /// 0: done; 1: failed; 2: refused.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Done { .. } => 0,
            Self::Failed(_) => 1,
            Self::Refused(_) => 2,
        }
    }
}

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
    let begin = Instant::now();
    match run_job(&job, &output, &options.cache, &options.fetching, terminal) {
        Ok(summary) => Outcome::Done { job_id: job.job_id, summary: Box::new(summary), time: begin.elapsed() },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
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
    let text = read_limited(path).map_err(|error| vec![format!("{error:#}")])?;
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let fallback = name.filter(|name| job::is_job_id(name)).unwrap_or(FALLBACK_ID);
    job::parse(&text, overrides, fallback).map_err(|problems| described(&problems))
}

/// What a job names on this machine is there, or all that is missing.
fn all_there(job: &JobSpec) -> Result<(), Vec<String>> {
    let validation = job.validation.as_ref().and_then(|dataset| dataset.check("validation_url"));
    let missing: Vec<Problem> =
        job.base_model.check().into_iter().chain(job.dataset.check("dataset_url")).chain(validation).collect();
    if missing.is_empty() { Ok(()) } else { Err(described(&missing)) }
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

fn run_job(
    job: &JobSpec,
    output: &Path,
    cache: &Path,
    fetching: &FetchOptions,
    terminal: MultiProgress,
) -> anyhow::Result<RunSummary> {
    job.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    std::fs::create_dir_all(output).with_context(|| format!("cannot create {}", output.display()))?;
    let (model_dir, base_model_name) = input::base_model(&job.base_model, output)?;
    let progress = Progress::new(terminal);
    let file = |dataset, purpose| input::dataset(dataset, purpose, output, fetching, &progress);
    let validation = job.validation.as_ref().map(|dataset| file(dataset, "validation"));
    let spec = RunSpec {
        job_id: job.job_id.clone(),
        model_dir,
        base_model_name,
        dataset: file(&job.dataset, "dataset")?,
        validation_dataset: validation.transpose()?,
        output_dir: output.to_owned(),
        cache_dir: cache.to_owned(),
        parameters: job.parameters.clone(),
    };
    let summary = run::run(&spec, &progress)?;
    let warnings = job.warnings.iter().chain(&summary.warnings).cloned().collect();
    Ok(RunSummary { warnings, ..summary })
}
