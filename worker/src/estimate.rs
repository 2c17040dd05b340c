//! `brightrun estimate`: what a job takes, how long and for how much, on every card of the price table and on this machine.

mod text;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use brightrun_trainer::{
    config::ModelConfig,
    demo, lora,
    plan::{DataFacts, Machine, MachineKind, Plan, Planner, Refusal},
    run::{Data, DataSpec},
};
use clap::Args;
use indicatif::MultiProgress;
use serde::Serialize;

use crate::{
    failure,
    input::{self, FetchOptions},
    job::{BaseModel, Dataset, GpuRequest, JobSpec},
    prices,
    progress::Progress,
    this_machine, train,
};

/// Examples of a dataset that nobody has read.
const ASSUMED_EXAMPLES: u64 = 1000;
/// Their mean length, where the longest one is no shorter.
const ASSUMED_LENGTH: u64 = 600;

/// The command line of `brightrun estimate`.
#[derive(Args)]
pub(crate) struct Options {
    /// The job.
    #[arg(value_name = "JOB.json")]
    job: PathBuf,
    /// Folder of the base model; its config.json is enough [default: the job's].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Card to run on, as in H100, or cpu [default: the job's gpu_type; without one, whatever fits].
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// Does not read the dataset: so many tokens are assumed [default: 600 an example].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    tokens: Option<u64>,
    /// Does not read the dataset: so many examples are assumed [default: 1000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    examples: Option<u64>,
    /// Prints the plans as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where tokenised datasets are kept.
    #[arg(long, value_name = "DIR", default_value = train::CACHE)]
    cache: PathBuf,
    #[command(flatten)]
    fetching: FetchOptions,
}

/// What came out of `brightrun estimate`.
pub(crate) enum Answer {
    /// The plans.
    Planned(Box<Estimate>),
    /// The command or the job is wrong.
    Refused(Vec<String>),
    /// The dataset or the model could not be read.
    Failed(String),
}

/// All plans of a job.
#[derive(Debug, Serialize)]
pub(crate) struct Estimate {
    job_id: String,
    /// Folder whose `config.json` was read.
    model: String,
    /// The machine that was asked for; without one, any of them.
    asked: Option<String>,
    /// Whether the job fits on it.
    fits: bool,
    /// Why not and what would fit.
    refusal: Option<Refusal>,
    /// Where the prices come from, and of which day they are.
    prices: String,
    /// What the numbers do not say.
    notes: Vec<String>,
    /// One plan for every machine, cards first, the cheapest of them in front.
    plans: Vec<Plan>,
}

/// What is to be planned, once the command line is understood.
struct Request<'a> {
    options: &'a Options,
    job: JobSpec,
    model: BaseModel,
    machines: Vec<Machine>,
    asked: Option<String>,
    notes: Vec<String>,
}

// === impl Answer ===

impl Answer {
    /// 0: it fits where it was asked to; 1: something could not be read; 2: the command or the job is wrong; 3: it does not
    /// fit.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Planned(estimate) if estimate.fits => 0,
            Self::Planned(_) => 3,
            Self::Failed(_) => 1,
            Self::Refused(_) => 2,
        }
    }
}

/// Plans a job.
pub(crate) fn estimate(options: &Options, terminal: MultiProgress) -> Answer {
    let request = match understand(options) {
        Ok(request) => request,
        Err(problems) => return Answer::Refused(problems),
    };
    match request.carry_out(terminal) {
        Ok(estimate) => Answer::Planned(Box::new(estimate)),
        Err(error) => Answer::Failed(failure::told(&error)),
    }
}

fn understand(options: &Options) -> Result<Request<'_>, Vec<String>> {
    let job = train::read_job(&options.job)?;
    let mut problems = Vec::new();
    let model = options.model.clone().map_or_else(|| job.base_model.clone(), BaseModel::Folder);
    if let BaseModel::Folder(folder) = &model
        && !folder.join("config.json").is_file()
    {
        let folder = folder.display();
        problems.push(format!("base_model: there is no config.json in \"{folder}\"; name its folder with --model"));
    }
    let mut notes = Vec::new();
    let (machines, asked) = match machines(options.gpu.as_deref(), &job.gpu, &mut notes) {
        Ok(found) => found,
        Err(problem) => {
            problems.push(problem);
            Default::default()
        }
    };
    if problems.is_empty() { Ok(Request { options, job, model, machines, asked, notes }) } else { Err(problems) }
}

/// Every machine of the table and this one, at the job's price where the job has one; and the name of the one asked for.
fn machines(
    gpu: Option<&str>,
    wanted: &GpuRequest,
    notes: &mut Vec<String>,
) -> Result<(Vec<Machine>, Option<String>), String> {
    let mut machines = prices::machines();
    let here = this_machine::processor();
    let processor = here.as_ref().map(Machine::name);
    machines.extend(here);
    let job_card = wanted.kind.as_deref().and_then(prices::find);
    if let (Some(kind), None) = (&wanted.kind, &job_card) {
        notes.push(format!("gpu_type {kind:?} is not in the price table; known are {}", prices::names()));
    }
    if let Some(card) = &job_card {
        machines.iter_mut().filter(|machine| machine.name() == card.name()).for_each(|machine| apply(wanted, machine));
    }
    let asked = match gpu {
        None => job_card.map(|card| card.name()),
        Some(name) if name.eq_ignore_ascii_case("cpu") => {
            Some(processor.ok_or("--gpu cpu: this system does not say how much memory it has")?)
        }
        Some(name) => Some(
            prices::find(name)
                .ok_or_else(|| format!("--gpu {name}: not in the price table; known are cpu, {}", prices::names()))?
                .name(),
        ),
    };
    Ok((machines, asked))
}

/// Gives a machine the job's own price, number and memory.
fn apply(wanted: &GpuRequest, machine: &mut Machine) {
    machine.count = wanted.count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1).max(1);
    let MachineKind::Gpu { memory_bytes, usd_per_hour, .. } = &mut machine.kind else { return };
    *usd_per_hour = wanted.usd_per_hour.unwrap_or(*usd_per_hour);
    // Sizes in gigabytes are rounded; only a card that is clearly another one counts.
    let named = wanted.memory_gb.map(|gb| gb * 1e9).filter(|bytes| (bytes / *memory_bytes as f64 - 1.0).abs() > 0.1);
    *memory_bytes = named.map_or(*memory_bytes, |bytes| bytes as u64);
}

// === impl Request ===

impl Request<'_> {
    fn carry_out(mut self, terminal: MultiProgress) -> anyhow::Result<Estimate> {
        let folder = self.options.cache.join("inputs");
        let model_dir = match &self.model {
            BaseModel::Folder(folder) => folder.clone(),
            BaseModel::Demo => {
                create(&folder)?;
                input::base_model(&self.model, &folder)?.0
            }
        };
        let config = ModelConfig::read(&model_dir)?;
        let data = if self.reads_dataset() { Some(self.read_dataset(&folder, &model_dir, terminal)?) } else { None };
        let facts = match &data {
            Some(data) => DataFacts::of(data),
            None => self.assumed(),
        };
        self.job.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if let Some(count) = self.job.gpu.count.filter(|count| *count > 1) {
            self.notes.push(format!("num_gpus is {count}: all are paid for, one computes"));
        }
        self.notes
            .push("cards: memory is that of an emulated card, time is computed; neither is measured yet".to_owned());
        let lora = lora::plan(&config, &self.job.parameters.lora())?;
        self.notes.extend(lora.warnings());
        let parameters = &self.job.parameters;
        let planner = Planner::new(&config, &lora, parameters, &facts).as_run();
        // The same for every card.
        self.notes.extend(self.machines.iter().find_map(|machine| planner.warning(machine)));
        self.answer(&planner, &model_dir)
    }

    /// Plans for every machine and says whether the job fits where it was asked to.
    fn answer(&self, planner: &Planner<'_>, model_dir: &Path) -> anyhow::Result<Estimate> {
        let plans = self.machines.iter().map(|machine| planner.plan(machine)).collect::<Result<Vec<_>, _>>()?;
        let asked = self.asked.as_ref().and_then(|name| plans.iter().find(|plan| plan.machine.name() == *name));
        // Without a wish, the roomiest machine says what is missing.
        let judged = asked.or_else(|| {
            plans.iter().find(|plan| plan.fits).or_else(|| plans.iter().max_by_key(|plan| plan.usable_bytes))
        });
        let judged = judged.context("there is no machine to plan for")?;
        let refusal = planner.refusal(judged, &self.machines)?;
        Ok(Estimate {
            job_id: self.job.job_id.clone(),
            model: model_dir.display().to_string(),
            asked: self.asked.clone(),
            fits: judged.fits,
            refusal,
            prices: format!("{}, {}", prices::SOURCE, prices::DATE),
            notes: self.notes.clone(),
            plans,
        })
    }

    /// A dataset is read where there is one and nobody said what to assume instead.
    fn reads_dataset(&self) -> bool {
        let assumed = self.options.tokens.is_some() || self.options.examples.is_some();
        let absent = matches!(&self.job.dataset, Dataset::File(path) if !path.is_file());
        !assumed && !absent
    }

    fn assumed(&mut self) -> DataFacts<'static> {
        let longest = self.job.parameters.max_seq_length;
        let examples = self.options.examples.unwrap_or(ASSUMED_EXAMPLES);
        let tokens = self.options.tokens.unwrap_or(examples * ASSUMED_LENGTH.min(longest as u64));
        self.notes.push(format!("no dataset was read: {examples} examples of {tokens} tokens in all are assumed"));
        DataFacts::assumed(examples, tokens, longest)
    }

    fn read_dataset(&mut self, folder: &Path, model_dir: &Path, terminal: MultiProgress) -> anyhow::Result<Data> {
        create(folder)?;
        let progress = Progress::new(terminal);
        let file = |dataset, purpose| input::dataset(dataset, purpose, folder, &self.options.fetching, &progress);
        let dataset = file(&self.job.dataset, "dataset")?;
        let validation = self.job.validation.as_ref().map(|dataset| file(dataset, "validation")).transpose()?;
        let stand_in = !model_dir.join("tokenizer.json").is_file();
        let tokenizer_dir = if stand_in { folder.join("demo-tokenizer") } else { model_dir.to_owned() };
        if stand_in {
            demo::write_tokenizer(&tokenizer_dir)?;
            self.notes
                .push("the model's tokenizer is not here: a small one of our own counts, and tokens are rough".into());
        }
        let spec = DataSpec {
            dataset: &dataset,
            validation_dataset: validation.as_deref(),
            model_dir: &tokenizer_dir,
            stand_in_model: stand_in,
            cache_dir: &self.options.cache,
            parameters: &self.job.parameters,
        };
        let data = Data::read(&spec, &|bytes, total| progress.reading(bytes, total));
        progress.close();
        let data = data?;
        anyhow::ensure!(
            data.report().ready,
            "the dataset is {}; `brightrun validate` says more",
            data.report().verdict
        );
        Ok(data)
    }
}

fn create(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}
