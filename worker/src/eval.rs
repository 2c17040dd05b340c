//! `brightrun eval`: the loss of a base model on a dataset, with an adapter and without.

use std::path::{Path, PathBuf};

use brightrun_trainer::{
    evaluate::{self, Extent, Measured, Part, Subject},
    run::{Data, DataSpec, Parameters},
};
use clap::{Args, ValueEnum};
use indicatif::MultiProgress;
use serde_json::{Value, json};

use crate::{
    command::{self, Bar, Ended, Precision},
    computer::{Computer, DeviceOption, Wanted},
    input::{self, FetchOptions},
    job::{BaseModel, Dataset},
    progress::Progress,
    train,
};

const BAR: &str = "{elapsed_precise} [{bar:32}] {pos}/{len} micro-batches  ETA {eta}";

/// The command line of `brightrun eval`.
#[derive(Args)]
pub(crate) struct Options {
    /// The dataset: a path, a URL, or demo:conversations.
    #[arg(value_name = "FILE|URL")]
    dataset: String,
    /// Folder of the base model, or demo.
    #[arg(long, value_name = "DIR")]
    base: String,
    /// Folder of the adapter; without one only the base is measured.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// How the base is held: nf4, as it was trained on, or full.
    #[arg(long, value_enum, default_value_t = Precision::Nf4)]
    base_precision: Precision,
    /// All examples, or those that a run with the same seed and share keeps for validation.
    #[arg(long, value_enum, default_value_t = Split::All)]
    split: Split,
    /// Share of the conversations that is kept for validation [default: a job's].
    #[arg(long, value_name = "SHARE")]
    validation_split: Option<f64>,
    /// Seed of the split [default: a job's].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Longest example in tokens [default: a job's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=262_144))]
    max_seq_length: Option<u32>,
    /// The loss covers the whole text instead of the assistant's turns.
    #[arg(long)]
    train_on_prompt: bool,
    /// The loss covers all assistant turns also where a line is one answer with its history.
    #[arg(long)]
    train_on_all_turns: bool,
    #[command(flatten)]
    device: DeviceOption,
    /// Prints the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where tokenised datasets are kept.
    #[arg(long, value_name = "DIR", default_value = train::CACHE)]
    cache: PathBuf,
    #[command(flatten)]
    fetching: FetchOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    All,
    Validation,
}

/// What was measured.
pub(crate) struct Evaluation {
    dataset: String,
    part: Part,
    extent: Extent,
    base: Measured,
    adapted: Option<Measured>,
    warnings: Vec<String>,
}

/// Everything that the command line names.
struct Request<'a> {
    options: &'a Options,
    base: BaseModel,
    dataset: Dataset,
    parameters: Parameters,
    device: Wanted,
}

/// Measures.
pub(crate) fn eval(options: &Options, terminal: &MultiProgress) -> Ended<Evaluation> {
    command::run(understand(options), |request| request.carry_out(terminal))
}

fn understand(options: &Options) -> Result<Request<'_>, Vec<String>> {
    let mut problems = Vec::new();
    let base = command::base(&options.base, true, &mut problems);
    options.adapter.iter().for_each(|adapter| command::check_adapter(adapter, &mut problems));
    let mut parameters = Parameters {
        train_on_prompt: options.train_on_prompt,
        train_on_all_turns: options.train_on_all_turns,
        ..Parameters::default()
    };
    parameters.seed = options.seed.unwrap_or(parameters.seed);
    parameters.max_seq_length = options.max_seq_length.map_or(parameters.max_seq_length, |length| length as usize);
    parameters.validation_split = options.validation_split.unwrap_or(parameters.validation_split);
    if !(0.0..1.0).contains(&parameters.validation_split) {
        problems.push(format!("--validation-split {}: must be from 0 and below 1", parameters.validation_split));
    }
    if options.split == Split::All {
        parameters.validation_split = 0.0;
    }
    let device = options.device.wanted().map_err(|why| problems.push(why)).unwrap_or_default();
    match command::dataset("dataset", &options.dataset, &mut problems).filter(|_| problems.is_empty()) {
        Some(dataset) => Ok(Request { options, base, dataset, parameters, device }),
        None => Err(problems),
    }
}

// === impl Request ===

impl Request<'_> {
    fn carry_out(&self, terminal: &MultiProgress) -> anyhow::Result<Evaluation> {
        let options = self.options;
        let computer = Computer::choose(self.device)?;
        let inputs = command::inputs(&options.cache)?;
        let base = command::base_folder(&self.base, &options.cache)?;
        let data = self.read(&base, &inputs, terminal)?;
        let part = match options.split {
            Split::All => Part::All,
            Split::Validation => Part::Validation,
        };
        let extent = Extent::of(&data, part)?;
        tracing::info!("loading the base model");
        let (adapter, precision) = (options.adapter.as_deref(), options.base_precision.of_base());
        let mut subject =
            computer.with_gpu(|gpu| Subject::open(&base, adapter, &precision, gpu, self.parameters.seed))?;
        let mut measure = |adapted: bool| {
            tracing::info!("measuring {}", if adapted { "base and adapter" } else { "the base" });
            let bar = Bar::new(terminal, BAR);
            evaluate::evaluate(&mut subject, &data, part, adapted, &|done, total| bar.set(done, total))
        };
        Ok(Evaluation {
            dataset: data.report().training.name.clone(),
            part,
            extent,
            base: measure(false)?,
            adapted: options.adapter.is_some().then(|| measure(true)).transpose()?,
            warnings: data.warnings(),
        })
    }

    fn read(&self, base: &Path, inputs: &Path, terminal: &MultiProgress) -> anyhow::Result<Data> {
        let progress = Progress::new(terminal.clone());
        let spec = DataSpec {
            dataset: &input::dataset(&self.dataset, "dataset", inputs, &self.options.fetching, &progress)?,
            validation_dataset: None,
            model_dir: base,
            stand_in_model: false,
            cache_dir: &self.options.cache,
            parameters: &self.parameters,
        };
        let data = Data::read(&spec, &|bytes, total| progress.reading(bytes, total));
        progress.close();
        let data = data?;
        // A report stays only where somebody is sent to it.
        if !data.report().ready {
            let report = inputs.join("dataset_report.json");
            data.report().write(&report)?;
            data.report().refusal(&report).map_or(Ok(()), Err)?;
        }
        Ok(data)
    }
}

impl command::Shown for Evaluation {
    fn json(&self) -> Value {
        let Extent { examples, tokens, target_tokens } = self.extent;
        json!({
            "dataset": self.dataset,
            "split": self.part,
            "examples": examples,
            "tokens": tokens,
            "target_tokens": target_tokens,
            "base": self.base,
            "adapter": self.adapted,
            "warnings": self.warnings,
        })
    }

    fn text(&self) -> String {
        let Extent { examples, tokens, target_tokens } = self.extent;
        let part = match self.part {
            Part::All => "all of it",
            Part::Validation => "its validation side",
        };
        let row = |name: &str, found: &Measured| {
            format!("  {name:<16}loss {:.4}   perplexity {:.3}\n", found.loss, found.perplexity)
        };
        let mut text = format!(
            "Dataset {}, {part}: {examples} examples, {tokens} tokens, {target_tokens} of them measured\n{}",
            command::printable(&self.dataset),
            row("base", &self.base)
        );
        text.extend(self.adapted.iter().map(|found| row("base + adapter", found)));
        self.warnings.iter().for_each(|warning| {
            text.push_str(&format!("  warning         {}\n", command::printable(warning)));
        });
        text
    }
}
