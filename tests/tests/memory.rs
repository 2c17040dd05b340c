//! A plan's peak memory against the memory a process really takes: every case is a process of its own, which loads a
//! model, takes a small step (so that the moments are there) and then the step that is planned. Linux only: the
//! high-water mark is read from `/proc`.
#![cfg(target_os = "linux")]

use std::env;
use std::path::Path;

use anyhow::{Context, Result};
use brightrun_kernels::dropout::splitmix;
use brightrun_tests::child::{high_water_mark, numbers_of};
use brightrun_tests::toy::{Mixers, Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{MicroBatch, Sequence};
use brightrun_trainer::config::{Family, ModelConfig};
use brightrun_trainer::lora::{self, TargetSet};
use brightrun_trainer::model::Model;
use brightrun_trainer::optim::{Optimizer, OptimizerKind};
use brightrun_trainer::plan::{BatchShape, DataFacts, Machine, Memory, Planner};
use brightrun_trainer::run::{Parameters, PrecisionKind};
use brightrun_trainer::step::{Gradients, Position, Recompute, StepOptions, accumulate};
use brightrun_trainer::weights::Checkpoint;

/// The case that a child measures, and the model it loads.
const CASE: &str = "BRIGHTRUN_TEST_CASE";
const MODEL: &str = "BRIGHTRUN_TEST_MODEL";
/// The child's test.
const CHILD: &str = "measured_in_a_process_of_its_own";
/// Tensors above this size go back to the system when they are freed, so that what is resident is what lives.
const MMAP_THRESHOLD: &str = "65536";
/// Threads of a child.
const THREADS: usize = 2;
/// The share by which a prediction of what lives may be off.
const TOLERANCE: f64 = 0.05;
/// The same for what is resident as the process runs by default: the allocator keeps some of what is freed, more or less
/// from run to run, and at these small sizes that counts.
const ALLOCATOR_TOLERANCE: f64 = 0.2;
/// The cases that are measured that way too.
const WITH_ALLOCATOR: [usize; 2] = [0, 2];

/// What a run is measured with.
struct Case {
    family: Family,
    precision: PrecisionKind,
    targets: TargetSet,
    optimizer: OptimizerKind,
    dropout: f64,
    recompute: Recompute,
    /// Tokens of the documents and how many of them are real.
    documents: Vec<(usize, usize)>,
    micro_batches: u64,
}

use Family::{Qwen2Moe, Qwen3Moe, Qwen3Next};
use OptimizerKind::{AdamW, AdamW8bit};
use PrecisionKind::{Full, Nf4};

/// `count` documents of one length without padding.
fn even(count: usize, length: usize) -> Vec<(usize, usize)> {
    vec![(length, length); count]
}

/// Both sides of everything that memory depends on: families, precisions, experts, moments, dropout, recompute, lengths.
fn cases() -> Vec<Case> {
    let case = |family, precision, targets, optimizer, dropout, recompute, documents, micro_batches| Case {
        family,
        precision,
        targets,
        optimizer,
        dropout,
        recompute,
        documents,
        micro_batches,
    };
    let (layers, none) = (Recompute::Layers, Recompute::None);
    let uneven = vec![(1000, 1000), (500, 500), (236, 236), (64, 64)];
    vec![
        case(Qwen3Next, Full, TargetSet::Default, AdamW, 0.0, layers, even(3, 512), 1),
        case(Qwen3Next, Nf4, TargetSet::All, AdamW, 0.05, layers, even(1, 1400), 2),
        case(Qwen3Next, Nf4, TargetSet::All, AdamW8bit, 0.0, none, uneven.clone(), 2),
        case(Qwen3Next, Full, TargetSet::Attention, AdamW, 0.0, none, vec![(512, 512), (512, 300), (512, 400)], 1),
        case(Qwen3Moe, Full, TargetSet::Default, AdamW, 0.05, none, even(2, 700), 1),
        case(Qwen3Moe, Nf4, TargetSet::All, AdamW8bit, 0.05, layers, even(12, 128), 2),
        case(Qwen2Moe, Full, TargetSet::Classic, AdamW, 0.05, layers, uneven, 2),
        case(Qwen2Moe, Nf4, TargetSet::Default, AdamW8bit, 0.0, none, even(3, 600), 1),
    ]
}

// === impl Case ===

impl Case {
    fn parameters(&self) -> Parameters {
        Parameters {
            base_precision: self.precision,
            targets: self.targets.clone(),
            optimizer: self.optimizer,
            lora_dropout: self.dropout,
            lora_rank: 16,
            expert_rank: Some(8),
            ..Parameters::default()
        }
    }

    fn name(&self) -> String {
        let tokens: usize = self.documents.iter().map(|(length, _)| length).sum();
        format!(
            "{:?} {:?} {:?} {:?} dropout {} {:?}, {tokens} tokens in {}, {} micro-batches",
            self.family,
            self.precision,
            self.targets,
            self.optimizer,
            self.dropout,
            self.recompute,
            self.documents.len(),
            self.micro_batches
        )
    }

    fn shape(&self) -> BatchShape {
        let lengths = || self.documents.iter().map(|(length, _)| *length as u64);
        BatchShape {
            tokens: lengths().sum(),
            documents: self.documents.len() as u64,
            longest: lengths().max().unwrap_or_default(),
            chunks: lengths().map(|length| length.div_ceil(64)).sum(),
            targets: self.documents.iter().map(|(_, valid)| *valid as u64 - 1).sum(),
            padded: self.documents.iter().any(|(length, valid)| length != valid),
        }
    }

    /// What the run takes on top of the process.
    fn predicted(&self, config: &ModelConfig) -> Result<Memory> {
        let parameters = self.parameters();
        let plan = lora::plan(config, &parameters.lora())?;
        let facts = DataFacts::from_lengths([1], 1.0);
        let planner = Planner::new(config, &plan, &parameters, &facts);
        let machine = Machine::cpu(THREADS, 1 << 36);
        Ok(planner.step_memory(&machine, self.shape(), self.micro_batches > 1, self.recompute))
    }
}

fn batch(documents: &[(usize, usize)], vocabulary: usize) -> Result<MicroBatch> {
    let token = |place: usize| (splitmix(place as u64) % vocabulary as u64) as u32;
    let sequence = |(start, &(length, valid)): (usize, &(usize, usize))| {
        let tokens: Vec<u32> = (0..length).map(|place| token(start << 20 | place)).collect();
        let label = |(place, token): (usize, &u32)| if place < valid { i64::from(*token) } else { -100 };
        Sequence { labels: tokens.iter().enumerate().map(label).collect(), tokens, valid }
    };
    Ok(MicroBatch::from_sequences(&documents.iter().enumerate().map(sequence).collect::<Vec<_>>())?)
}

/// Loads the model and takes two steps; returns how far the high-water mark rose.
fn measure(case: &Case, model_dir: &Path) -> Result<f64> {
    let begin = high_water_mark()? as f64;
    let parameters = case.parameters();
    let config = ModelConfig::read(model_dir)?;
    let plan = lora::plan(&config, &parameters.lora())?;
    let adapters = Adapters::new(&config, &plan, 1)?;
    let checkpoint = Checkpoint::open(model_dir, &config)?;
    let model = Model::load(&config, &checkpoint, &parameters.precision(), &adapters)?;
    let mut optimizer = Optimizer::new(&adapters, parameters.optimizer());
    let options = StepOptions {
        recompute: case.recompute,
        dropout: case.dropout as f32,
        seed: 1,
        neftune_alpha: 0.0,
        aux_coefficient: None,
    };
    let small = [(64, 64)];
    for (step, documents, micro_batches) in [(0, &small[..], 1), (1, &case.documents, case.micro_batches)] {
        let mut gradients = Gradients::new(&adapters);
        for micro_batch in 0..micro_batches {
            let batch = batch(documents, config.vocab_size)?;
            let position = Position { step, micro_batch, micro_batches };
            accumulate(&model, &batch, &options, position, 1000, &mut gradients)?;
        }
        optimizer.step(&gradients, 1e-4)?;
    }
    Ok(high_water_mark()? as f64 - begin)
}

/// Measures one case where it is asked to; otherwise there is nothing to do.
#[test]
#[ignore = "runs as a process of its own"]
fn measured_in_a_process_of_its_own() {
    let (Ok(index), Ok(model)) = (env::var(CASE), env::var(MODEL)) else { return };
    let case = &cases()[index.parse::<usize>().unwrap()];
    println!("the mark rose by {}", measure(case, Path::new(&model)).unwrap());
}

/// `strict`: what is freed goes back to the system at once.
fn measured(index: usize, model_dir: &Path, strict: bool) -> Result<f64> {
    let (index, model) = (index.to_string(), model_dir.to_str().context("an odd path")?);
    let mut variables = vec![(CASE, index.as_str()), (MODEL, model)];
    variables.extend(strict.then_some(("MALLOC_MMAP_THRESHOLD_", MMAP_THRESHOLD)));
    numbers_of(CHILD, "the mark rose by ", THREADS, &variables)?.first().copied().context("no number")
}

#[test]
fn the_predicted_peak_is_the_measured_one() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    let mut models = Vec::new();
    for family in Family::ALL {
        let mixers = if family == Qwen3Next { Mixers::Both } else { Mixers::Attention };
        let shape = Shape { family, mixers, layers: 3, hidden: 512, vocabulary: 4096, experts: 8, expert_width: 256 };
        let dir = folder.path().join(family.model_type());
        std::fs::create_dir(&dir).unwrap();
        models.push((family, Toy::write(&dir, &shape, 1).unwrap().config, dir));
    }
    let mut report = String::new();
    let mut within = true;
    for (index, case) in cases.iter().enumerate() {
        let (_, config, dir) = models.iter().find(|(family, ..)| *family == case.family).unwrap();
        let memory = case.predicted(config).unwrap();
        let whole = memory.most() - memory.process;
        let mut compare = |strict: bool, predicted: u64, tolerance: f64| {
            let (predicted, measured) = (predicted as f64, measured(index, dir, strict).unwrap());
            let off = predicted / measured - 1.0;
            within &= off.abs() <= tolerance;
            let how = if strict { "lives" } else { "resident" };
            let numbers = format!("{:.1} MB {how}, predicted {:.1}", measured / 1e6, predicted / 1e6);
            report.push_str(&format!("{:+.1} %: {numbers}: {}\n", 100.0 * off, case.name()));
        };
        compare(true, whole - memory.allocator, TOLERANCE);
        if WITH_ALLOCATOR.contains(&index) {
            compare(false, whole, ALLOCATOR_TOLERANCE);
        }
        if !within {
            report.push_str(&format!("    {memory:?}\n"));
        }
    }
    println!("{report}");
    assert!(within, "\n{report}");
}
