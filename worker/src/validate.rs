//! `brightrun validate`: what there is to say about a dataset, without training on it.

use std::{
    fs,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use anyhow::Context;
use brightrun_trainer::{
    artifacts::atomic,
    dataset::{dump, encode::TextTokenizer, report::DatasetReport, store::TokenStore},
    demo,
    run::{Data, DataSpec, Parameters},
};
use clap::Args;
use indicatif::MultiProgress;

use crate::{
    failure,
    input::{self, FetchOptions},
    job::{self, BaseModel, Dataset, JobSpec},
    progress::Progress,
    train,
};

/// The command line of `brightrun validate`.
#[derive(Args)]
pub(crate) struct Options {
    /// The dataset: a path, a URL, or demo:conversations.
    #[arg(value_name = "FILE|URL")]
    dataset: String,
    /// Folder of the base model, for its tokenizer and chat template [default: the job's, else the demo's small tokenizer].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A job file whose parameters count [default: the defaults].
    #[arg(long, value_name = "JOB.json")]
    job: Option<PathBuf>,
    /// Longest example in tokens [default: the job's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=262_144))]
    max_seq_length: Option<u32>,
    /// Writes dataset_report.json to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Writes every example as it is trained on, one JSON object a line.
    #[arg(long, value_name = "FILE.jsonl")]
    dump: Option<PathBuf>,
    /// Prints the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where tokenised datasets are kept.
    #[arg(long, value_name = "DIR", default_value = train::CACHE)]
    cache: PathBuf,
    #[command(flatten)]
    fetching: FetchOptions,
}

/// What `brightrun validate` found.
pub(crate) enum Verdict {
    /// The dataset was read; its report says whether it can be trained on.
    Read(Box<DatasetReport>),
    /// The command is wrong.
    Refused(Vec<String>),
    /// The dataset or the model could not be read.
    Failed(String),
}

impl Verdict {
    /// 0: ready; 1: fatal findings, or nothing could be read; 2: the command is wrong.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Read(report) => u8::from(!report.ready),
            Self::Failed(_) => 1,
            Self::Refused(_) => 2,
        }
    }
}

/// What is to be read, once the command line is understood.
struct Request<'a> {
    options: &'a Options,
    dataset: Dataset,
    validation: Option<Dataset>,
    /// `None`: the demo's tokenizer stands in.
    model: Option<BaseModel>,
    parameters: Parameters,
}

/// Looks at a dataset.
pub(crate) fn validate(options: &Options, terminal: MultiProgress) -> Verdict {
    let request = match understand(options) {
        Ok(request) => request,
        Err(problems) => return Verdict::Refused(problems),
    };
    match request.carry_out(terminal) {
        Ok(report) => Verdict::Read(Box::new(report)),
        Err(error) => Verdict::Failed(failure::told(&error)),
    }
}

fn understand(options: &Options) -> Result<Request<'_>, Vec<String>> {
    let job = options.job.as_deref().map(train::read_job).transpose()?;
    let dataset = job::dataset(&options.dataset).map_err(|message| vec![format!("the dataset {message}")])?;
    let model = match &options.model {
        Some(folder) if folder.join("tokenizer.json").is_file() => Some(BaseModel::Folder(folder.clone())),
        Some(folder) => {
            let message = "there is no tokenizer.json in it; name the folder of a base model";
            return Err(vec![format!("--model {}: {message}", folder.display())]);
        }
        None => job.as_ref().and_then(model_of_job),
    };
    let mut parameters = job.as_ref().map(|job| job.parameters.clone()).unwrap_or_default();
    if let Some(length) = options.max_seq_length {
        parameters.max_seq_length = length as usize;
    }
    job.iter().flat_map(|job| &job.warnings).for_each(|warning| tracing::warn!("{warning}"));
    Ok(Request { options, dataset, validation: job.and_then(|job| job.validation), model, parameters })
}

/// The job's model, if its tokenizer is here: a dataset is often looked at where the model is not.
fn model_of_job(job: &JobSpec) -> Option<BaseModel> {
    match &job.base_model {
        BaseModel::Folder(folder) if !folder.join("tokenizer.json").is_file() => None,
        model => Some(model.clone()),
    }
}

impl Request<'_> {
    fn carry_out(&self, terminal: MultiProgress) -> anyhow::Result<DatasetReport> {
        let folder = self.options.cache.join("inputs");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let progress = Progress::new(terminal);
        let file = |dataset, purpose| input::dataset(dataset, purpose, &folder, &self.options.fetching, &progress);
        let dataset = file(&self.dataset, "dataset")?;
        let validation = self.validation.as_ref().map(|dataset| file(dataset, "validation")).transpose()?;
        let model_dir = match &self.model {
            Some(BaseModel::Folder(folder)) => folder.clone(),
            Some(BaseModel::Demo) | None => {
                let folder = folder.join("demo-tokenizer");
                demo::write_tokenizer(&folder)?;
                folder
            }
        };
        let spec = DataSpec {
            dataset: &dataset,
            validation_dataset: validation.as_deref(),
            model_dir: &model_dir,
            stand_in_model: self.model.is_none(),
            cache_dir: &self.options.cache,
            parameters: &self.parameters,
        };
        let data = Data::read(&spec, &|bytes, total| progress.reading(bytes, total));
        progress.close();
        let data = data?;
        if let Some(path) = &self.options.report {
            data.report().write(path)?;
        }
        if let Some(path) = &self.options.dump {
            let validation = validation.as_deref().zip(data.validation());
            write_dump(path, [Some((&*dataset, data.training())), validation].into_iter().flatten(), &model_dir)?;
        }
        Ok(data.report().clone())
    }
}

fn write_dump<'a>(
    path: &Path,
    mut files: impl Iterator<Item = (&'a Path, &'a TokenStore)>,
    model_dir: &Path,
) -> anyhow::Result<()> {
    let tokenizer = TextTokenizer::load(model_dir)?;
    atomic::write_with(path, |file| {
        let mut out = BufWriter::new(file);
        let mut write = |(dataset, store)| dump::write(&mut out, path, dataset, &tokenizer, store);
        files.try_for_each(&mut write).map_err(io::Error::other)
    })?;
    Ok(())
}
