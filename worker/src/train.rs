//! `brightrun train`: a job file in, an adapter out.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use brightrun_trainer::run::{self, RunSpec, RunSummary};
use indicatif::MultiProgress;

use crate::{
    input::{self, FetchOptions},
    job::{self, JobSpec, Problem},
    progress::Progress,
};

/// Longest job file that is read.
const MAX_JOB_BYTES: u64 = 16 << 20;

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

/// Runs the job of a file.
pub(crate) fn train(
    job_file: &Path,
    output: Option<PathBuf>,
    cache: &Path,
    fetching: &FetchOptions,
    terminal: MultiProgress,
) -> Outcome {
    let job = match read_job(job_file).and_then(|job| all_there(&job).map(|()| job)) {
        Ok(job) => job,
        Err(problems) => return Outcome::Refused(problems),
    };
    let output = output.unwrap_or_else(|| Path::new("brightrun-output").join(&job.job_id));
    let begin = Instant::now();
    match run_job(&job, &output, cache, fetching, terminal) {
        Ok(summary) => Outcome::Done { job_id: job.job_id, summary: Box::new(summary), time: begin.elapsed() },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// The job of a file, or everything that is wrong with it.
pub(crate) fn read_job(path: &Path) -> Result<JobSpec, Vec<String>> {
    let text = read_limited(path).map_err(|error| vec![format!("{error:#}")])?;
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let fallback = name.filter(|name| job::is_job_id(name)).unwrap_or("job");
    job::parse(&text, fallback).map_err(|problems| described(&problems))
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
