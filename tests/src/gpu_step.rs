//! A whole step on a GPU beside that of the processor, which computes in `f32` from the same weights.

use std::path::Path;

use anyhow::{Context, Result};
use brightrun_kernels::gpu::Gpu;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::clock::Still;
use brightrun_trainer::gpu::{GpuModel, GpuOptimizer, Source};
use brightrun_trainer::optim::{Optimizer, OptimizerOptions};
use brightrun_trainer::step::{Gradients, Position, StepOptions, accumulate};
use brightrun_trainer::weights::BasePrecision;

use crate::toy::{Shape, Toy};

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
}

/// A number of the step on both sides.
#[derive(Debug, Clone)]
pub struct Difference {
    /// What it is.
    pub what: String,
    /// `‖found - expected‖ / ‖expected‖`.
    pub error: f64,
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = square(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)));
    let size = square(&mut expected.iter().map(|value| f64::from(*value)));
    if difference == 0.0 { 0.0 } else { difference / size }
}

impl Case {
    /// Takes one optimiser step on both sides in a folder of its own, and compares all that it gives.
    pub fn compare(&self, gpu: &Gpu, folder: &Path) -> Result<Vec<Difference>> {
        let toy = Toy::write(folder, &self.shape, self.seed)?;
        let adapters = || -> Result<Adapters> { toy.adapters(&toy.plan(toy.every_linear())?, self.seed + 1) };
        let batches = self.batches(&toy)?;
        let targets = batches.iter().map(MicroBatch::target_count).sum();

        let on_cpu = adapters()?;
        let model = brightrun_trainer::model::Model::load(&toy.config, &toy.checkpoint, &self.precision, &on_cpu)?;
        let on_host = adapters()?;
        let mut model_on_gpu =
            GpuModel::load(gpu, &toy.config, Source::Checkpoint(&toy.checkpoint), &self.precision, &on_host)?;
        let mut gradients = Gradients::new(&on_cpu);
        let mut differences = Vec::new();
        let mut note = |what: String, error: f64| differences.push(Difference { what, error });
        for (index, batch) in batches.iter().enumerate() {
            let position = Position { step: 3, micro_batch: index as u64, micro_batches: batches.len() as u64 };
            let expected = accumulate(&model, batch, &self.options, position, targets, &mut gradients)?;
            let found = model_on_gpu.accumulate(batch, &self.options, position, targets, &Still)?;
            note(format!("loss of micro-batch {index}"), (found.loss_sum / expected.loss_sum - 1.0).abs());
            if let Some(expected) = expected.aux_loss {
                let found = found.aux_loss.context("no load-balancing loss")?;
                note(format!("load-balancing loss of micro-batch {index}"), (found / expected - 1.0).abs());
            }
        }
        let (mut all_found, mut all_expected) = (Vec::new(), Vec::new());
        for (trained, (parameter, _, _)) in model_on_gpu.adapters().trained().iter().zip(gradients.iter()) {
            let expected = gradients.of(&parameter.var)?.flatten_all()?.to_vec1::<f32>()?;
            let found = trained.gradient.download()?;
            note(format!("gradient of {}", parameter.name), relative(&found, &expected));
            all_found.extend(found);
            all_expected.extend(expected);
        }
        note("all gradients".into(), relative(&all_found, &all_expected));

        let options = OptimizerOptions::default();
        let expected = Optimizer::new(&on_cpu, options).step(&gradients, 1e-3)?;
        let mut optimizer = GpuOptimizer::new(gpu, model_on_gpu.adapters(), &options, 10)?;
        let found = optimizer.step(model_on_gpu.adapters_mut(), 1e-3)?;
        note("norm of all gradients".into(), (found.gradient_norm / expected.gradient_norm - 1.0).abs());
        model_on_gpu.refresh()?;
        let expected: f64 = batches
            .iter()
            .map(|batch| Ok(brightrun_trainer::step::evaluate(&model, batch, false)?.loss_sum))
            .sum::<Result<f64>>()?;
        let found: f64 =
            batches.iter().map(|batch| Ok(model_on_gpu.evaluate(batch, true)?.loss_sum)).sum::<Result<f64>>()?;
        note("loss after the step".into(), (found / expected - 1.0).abs());
        Ok(differences)
    }

    fn batches(&self, toy: &Toy) -> Result<Vec<MicroBatch>> {
        let batch = |(index, documents): (usize, &Vec<(usize, usize)>)| {
            let lengths: Vec<usize> = documents.iter().map(|(_, real)| *real).collect();
            let mut sequences = toy.sequences(&lengths, 0.7, self.seed + 10 + index as u64);
            for (sequence, (places, _)) in sequences.iter_mut().zip(documents) {
                sequence.tokens.resize(*places, 0);
                sequence.labels.resize(*places, brightrun_trainer::batch::IGNORED);
            }
            Ok(MicroBatch::from_sequences(&sequences)?)
        };
        self.documents.iter().enumerate().map(batch).collect()
    }
}
