//! A whole step on a GPU beside that of the processor, which computes in `f32` from the same weights.

use std::path::Path;

use anyhow::{Result, ensure};
use brightrun_kernels::gpu::{Gpu, Usage};
use brightrun_kernels::gpu_check::relative_error;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{IGNORED, MicroBatch};
use brightrun_trainer::clock::Still;
use brightrun_trainer::config::Family;
use brightrun_trainer::gpu::{GpuModel, GpuOptimizer, Offload, Source};
use brightrun_trainer::model::Model;
use brightrun_trainer::optim::{Optimizer, OptimizerOptions};
use brightrun_trainer::step::{Gradients, MicroReport, Position, StepOptions, accumulate, evaluate};
use brightrun_trainer::weights::BasePrecision;

use crate::steps::PLAIN;
use crate::toy::{Mixers, Shape, Toy};

/// What a step is made of.
#[derive(Debug, Clone)]
pub struct Case {
    /// The model.
    pub shape: Shape,
    /// In which precision its base is held.
    pub precision: BasePrecision,
    /// How the step is computed.
    pub options: StepOptions,
    /// Lengths of the documents of each micro-batch, with padding and without.
    pub documents: Vec<Vec<(usize, usize)>>,
    /// Draws weights, adapters and tokens.
    pub seed: u64,
    /// What the GPU moves to memory of the host.
    pub offload: Offload,
}

/// A number of the step on both sides.
#[derive(Debug, Clone)]
pub struct Difference {
    /// What it is.
    pub what: String,
    /// `‖found - expected‖ / ‖expected‖`.
    pub error: f64,
    /// The same of the processor's own step from embeddings that are off by as much as bf16 rounds: the worst of several.
    pub control: f64,
}

/// Learning rate of the step.
const RATE: f64 = 1e-3;
/// Half of the distance of two numbers of bf16, as a share of them.
const ROUNDING: f64 = 1.0 / 256.0;
/// How often that is tried: how far a step is off depends on what is drawn.
const NUDGES: u64 = 4;
/// What is allowed: so much, or so many times what the processor's own step changes by.
const ALLOWED: (f64, f64) = (0.03, 6.0);

impl Difference {
    /// Whether bf16 explains it; what is not a number is not explained.
    pub fn holds(&self) -> bool {
        self.error <= self.allowed()
    }

    /// What bf16 explains.
    pub fn allowed(&self) -> f64 {
        ALLOWED.0.max(ALLOWED.1 * self.control)
    }
}

/// Steps that reach everything, by name.
///
/// A router that chooses otherwise because of a rounding changes a token's way altogether. So what is not about choices has as
/// many experts as a token meets; the families with more have a seed for which no choice is near, on the emulated GPU.
pub fn cases() -> Vec<(&'static str, Case)> {
    let of = |family: Family, experts: usize| Case {
        shape: Shape {
            family,
            mixers: if family == Family::Qwen3Next { Mixers::Both } else { Mixers::Attention },
            layers: 2,
            hidden: 64,
            vocabulary: 96,
            experts,
            expert_width: 32,
        },
        precision: BasePrecision::nf4(),
        options: PLAIN,
        documents: vec![vec![(37, 37), (1, 1), (20, 20)]],
        seed: 5,
        offload: Offload::Nothing,
    };
    let next = || of(Family::Qwen3Next, 2);
    vec![
        ("qwen3_next", of(Family::Qwen3Next, 6)),
        ("qwen3_moe", of(Family::Qwen3Moe, 6)),
        ("qwen2_moe", of(Family::Qwen2Moe, 6)),
        ("qwen3_next, all experts", next()),
        ("qwen3_moe, all experts", of(Family::Qwen3Moe, 2)),
        ("qwen2_moe, all experts", of(Family::Qwen2Moe, 2)),
        ("a base in bf16", Case { precision: BasePrecision::Full, ..next() }),
        (
            "padding and micro-batches",
            Case { documents: vec![vec![(20, 17), (9, 9)], vec![(30, 30), (12, 3)]], ..next() },
        ),
        ("dropout", Case { options: StepOptions { dropout: 0.2, ..PLAIN }, ..next() }),
        ("noise", Case { options: StepOptions { neftune_alpha: 5.0, ..PLAIN }, ..next() }),
        ("load balancing", Case { options: StepOptions { aux_coefficient: Some(0.1), ..PLAIN }, ..next() }),
    ]
}

/// What a step gave, by name.
type Numbers = Vec<(String, Vec<f32>)>;

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    relative_error(&wide(found), &wide(expected))
}

impl Case {
    /// Takes one optimiser step on both sides, with files in this folder, and compares all that it gives.
    pub fn compare(&self, gpu: &Gpu, folder: &Path) -> Result<Vec<Difference>> {
        let toy = Toy::write(folder, &self.shape, self.seed)?;
        let (expected, found) = (self.on_processor(&toy)?, self.on_gpu(gpu, &toy)?);
        let nudged = |nudge| self.on_processor(&Toy::write_nudged(folder, &self.shape, self.seed, ROUNDING, nudge)?);
        let controls = (0..NUDGES).map(nudged).collect::<Result<Vec<_>>>()?;
        ensure!(
            found.iter().map(|(what, _)| what).eq(expected.iter().map(|(what, _)| what)),
            "the numbers of both sides are not the same ones"
        );
        let all = expected.into_iter().zip(found).enumerate();
        let differences = all.map(|(index, ((what, expected), (_, found)))| {
            let moved = controls.iter().map(|control| relative(&control[index].1, &expected));
            Difference { what, error: relative(&found, &expected), control: moved.fold(0.0, f64::max) }
        });
        Ok(differences.collect())
    }

    /// Whether two GPUs, or the same one twice, give the same bits.
    pub fn repeats(&self, gpus: [&Gpu; 2], folder: &Path) -> Result<bool> {
        let [first, second] = gpus.map(|gpu| self.bits(gpu, folder));
        Ok(first? == second?)
    }

    /// All numbers of the step on a GPU, to the bit.
    pub fn bits(&self, gpu: &Gpu, folder: &Path) -> Result<Vec<u32>> {
        let toy = Toy::write(folder, &self.shape, self.seed)?;
        let numbers = self.on_gpu(gpu, &toy)?;
        Ok(numbers.into_iter().flat_map(|(_, values)| values).map(f32::to_bits).collect())
    }

    /// The memory of a GPU behind its first micro-batch, with the model in it; the most is that of the micro-batch.
    pub fn usage(&self, gpu: &Gpu, folder: &Path) -> Result<Usage> {
        let toy = Toy::write(folder, &self.shape, self.seed)?;
        let (mut model, batches) = (self.model_on_gpu(gpu, &toy)?, self.batches(&toy)?);
        gpu.forget_peak();
        if let Some((batch, position, targets)) = positions(&batches).next() {
            model.accumulate(batch, &self.options, position, targets, &Still)?;
        }
        Ok(gpu.usage())
    }

    fn adapters(&self, toy: &Toy) -> Result<Adapters> {
        toy.adapters(&toy.plan(toy.every_linear())?, self.seed + 1)
    }

    fn on_processor(&self, toy: &Toy) -> Result<Numbers> {
        let (adapters, batches) = (self.adapters(toy)?, self.batches(toy)?);
        let model = Model::load(&toy.config, &toy.checkpoint, &self.precision, &adapters)?;
        let (mut gradients, mut numbers) = (Gradients::new(&adapters), Numbers::new());
        for (index, (batch, position, targets)) in positions(&batches).enumerate() {
            let report = accumulate(&model, batch, &self.options, position, targets, &mut gradients)?;
            note_report(&mut numbers, index, &report);
        }
        let mut all = Vec::new();
        for (parameter, _, _) in gradients.iter() {
            let gradient = gradients.of(&parameter.var)?.flatten_all()?.to_vec1::<f32>()?;
            all.extend_from_slice(&gradient);
            numbers.push((format!("gradient of {}", parameter.name), gradient));
        }
        numbers.push(("all gradients".into(), all));
        let norm = Optimizer::new(&adapters, OptimizerOptions::default()).step(&gradients, RATE)?.gradient_norm;
        numbers.push(("norm of all gradients".into(), vec![norm as f32]));
        let losses = batches.iter().map(|batch| Ok(evaluate(&model, batch, false)?.loss_sum as f32));
        numbers.push(("loss after the step".into(), losses.collect::<Result<_>>()?));
        Ok(numbers)
    }

    fn model_on_gpu(&self, gpu: &Gpu, toy: &Toy) -> Result<GpuModel> {
        let source = Source::Checkpoint(&toy.checkpoint);
        let mut model = GpuModel::load(gpu, &toy.config, source, &self.precision, &self.adapters(toy)?)?;
        model.set_offload(self.offload);
        Ok(model)
    }

    fn on_gpu(&self, gpu: &Gpu, toy: &Toy) -> Result<Numbers> {
        let (mut model, batches) = (self.model_on_gpu(gpu, toy)?, self.batches(toy)?);
        let mut numbers = Numbers::new();
        for (index, (batch, position, targets)) in positions(&batches).enumerate() {
            let report = model.accumulate(batch, &self.options, position, targets, &Still)?;
            note_report(&mut numbers, index, &report);
        }
        let mut all = Vec::new();
        for trained in model.adapters().trained() {
            let gradient = trained.gradient.download()?;
            all.extend_from_slice(&gradient);
            numbers.push((format!("gradient of {}", trained.parameter.name), gradient));
        }
        numbers.push(("all gradients".into(), all));
        let mut optimizer = GpuOptimizer::new(gpu, model.adapters(), &OptimizerOptions::default(), 1)?;
        let norm = optimizer.step(model.adapters_mut(), RATE)?.gradient_norm;
        numbers.push(("norm of all gradients".into(), vec![norm as f32]));
        model.refresh()?;
        let losses = batches.iter().map(|batch| Ok(model.evaluate(batch, true)?.loss_sum as f32));
        numbers.push(("loss after the step".into(), losses.collect::<Result<_>>()?));
        Ok(numbers)
    }

    fn batches(&self, toy: &Toy) -> Result<Vec<MicroBatch>> {
        let batch = |(index, documents): (usize, &Vec<(usize, usize)>)| {
            let lengths: Vec<usize> = documents.iter().map(|(_, real)| *real).collect();
            let mut sequences = toy.sequences(&lengths, 0.7, self.seed + 10 + index as u64);
            for (sequence, (places, _)) in sequences.iter_mut().zip(documents) {
                sequence.tokens.resize(*places, 0);
                sequence.labels.resize(*places, IGNORED);
            }
            Ok(MicroBatch::from_sequences(&sequences)?)
        };
        self.documents.iter().enumerate().map(batch).collect()
    }
}

/// The micro-batches of a step, each with its place and the targets of all.
fn positions(batches: &[MicroBatch]) -> impl Iterator<Item = (&MicroBatch, Position, usize)> {
    let targets = batches.iter().map(MicroBatch::target_count).sum();
    batches.iter().enumerate().map(move |(index, batch)| {
        (batch, Position { step: 3, micro_batch: index as u64, micro_batches: batches.len() as u64 }, targets)
    })
}

fn note_report(numbers: &mut Numbers, index: usize, report: &MicroReport) {
    numbers.push((format!("loss of micro-batch {index}"), vec![report.loss_sum as f32]));
    if let Some(aux) = report.aux_loss {
        numbers.push((format!("load-balancing loss of micro-batch {index}"), vec![aux as f32]));
    }
}
