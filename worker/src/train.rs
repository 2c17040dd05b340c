//! `brightrun train`: a job file in, an adapter out.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use brightrun_trainer::{
    demo,
    run::{self, RunSpec, RunSummary},
};
use indicatif::MultiProgress;
use tokio_util::sync::CancellationToken;

use crate::{
    job::{self, BaseModel, Dataset, JobSpec, Problem},
    progress::Progress,
    storage::{self, FetchLimits, S3Settings, Source, SourcePolicy},
};

/// Longest job file that is read.
const MAX_JOB_BYTES: u64 = 16 << 20;

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
pub(crate) fn train(job_file: &Path, output: Option<PathBuf>, terminal: MultiProgress) -> Outcome {
    let job = match read_job(job_file) {
        Ok(job) => job,
        Err(problems) => return Outcome::Refused(problems),
    };
    let output = output.unwrap_or_else(|| Path::new("brightrun-output").join(&job.job_id));
    let begin = Instant::now();
    match run_job(&job, &output, terminal) {
        Ok(summary) => Outcome::Done { job_id: job.job_id, summary: Box::new(summary), time: begin.elapsed() },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn read_job(path: &Path) -> Result<JobSpec, Vec<String>> {
    let text = read_limited(path).map_err(|error| vec![format!("{error:#}")])?;
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let fallback = name.filter(|name| job::is_job_id(name)).unwrap_or("job");
    let describe = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let job = job::parse(&text, fallback).map_err(describe)?;
    let missing: Vec<Problem> = job.base_model.check().into_iter().chain(job.dataset.check()).collect();
    if missing.is_empty() { Ok(job) } else { Err(describe(missing)) }
}

fn read_limited(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read the job file {}", path.display());
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_JOB_BYTES + 1).read_to_string(&mut text)).with_context(context)?;
    anyhow::ensure!(text.len() as u64 <= MAX_JOB_BYTES, "{} is larger than 16 MiB", path.display());
    Ok(text)
}

/// Brings a dataset into the job's folder, for a person at the command line.
fn fetch(source: &Source, output: &Path) -> anyhow::Result<PathBuf> {
    let s3 = S3Settings::from_environment().map_err(anyhow::Error::msg)?;
    let policy = SourcePolicy { s3, ..SourcePolicy::local() };
    let target = output.join("dataset");
    tracing::info!("fetching {source}");
    let fetched = storage::fetch_blocking(
        source,
        &target,
        &policy,
        &FetchLimits::default(),
        &|progress| tracing::debug!("{} bytes", progress.bytes),
        &CancellationToken::new(),
    )?;
    tracing::info!("fetched {} bytes", fetched.bytes);
    Ok(target)
}

fn run_job(job: &JobSpec, output: &Path, terminal: MultiProgress) -> anyhow::Result<RunSummary> {
    job.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    std::fs::create_dir_all(output).with_context(|| format!("cannot create {}", output.display()))?;
    let (model_dir, base_model_name) = match &job.base_model {
        BaseModel::Folder(folder) => (folder.clone(), folder.display().to_string()),
        BaseModel::Demo => {
            let folder = output.join("base");
            demo::write_model(&folder)?;
            (folder, demo::BASE_MODEL.to_owned())
        }
    };
    let dataset = match &job.dataset {
        Dataset::File(path) => path.clone(),
        Dataset::Demo => {
            let path = output.join("conversations.jsonl");
            demo::write_dataset(&path)?;
            path
        }
        Dataset::Remote(source) => fetch(source, output)?,
    };
    let spec = RunSpec {
        job_id: job.job_id.clone(),
        model_dir,
        base_model_name,
        dataset,
        validation_dataset: None,
        output_dir: output.to_owned(),
        parameters: job.parameters.clone(),
    };
    let progress = Progress::new(terminal);
    let summary = run::run(&spec, &progress)?;
    let warnings = job.warnings.iter().chain(&summary.warnings).cloned().collect();
    Ok(RunSummary { warnings, ..summary })
}
