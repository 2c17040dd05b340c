//! The same runs on a GPU, in bf16: losses and curves.

use std::path::Path;

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::clock::Still;
use brightrun_trainer::gpu::{GpuModel, GpuOptimizer, Source};
use brightrun_trainer::model::Nf4Arithmetic;
use brightrun_trainer::optim::UnhitExperts;
use brightrun_trainer::step::Position;
use brightrun_trainer::weights::BasePrecision;

use super::fixture::Fixture;
use super::measure::{Report, relative};
use super::model::{self, STEP};

/// What bf16 moves a loss by.
const LOSS: f64 = 1e-2;
/// What it moves the losses of ten steps by: the processor's own, in `f32`, are off by 0.6e-2 to 1.2e-2 when embeddings are nudged by as
/// much as bf16 rounds (qwen3_next, five draws), for some tokens then go to other experts.
const RUN_LOSS: f64 = 3e-2;
/// What it moves the norm of the first gradients by. Later ones follow from steps of AdamW, which turns the sign of the smallest
/// gradient into a whole step; they are told and not held to anything.
const NORM: f64 = 5e-2;

/// Measures the base's losses and the LoRA run of a fixture.
pub(super) fn measure(gpu: &Gpu, dir: &Path) -> Result<Report> {
    let (fixture, mut report) = (Fixture::open(dir)?, Report::default());
    let source = model::Source::open(&fixture.base(), BasePrecision::Full, Nf4Arithmetic::Exact)?;
    let load = |adapters: &Adapters| {
        GpuModel::load(gpu, &source.config, Source::Checkpoint(&source.checkpoint), &source.precision, adapters)
    };
    let adapters = source.adapters(&fixture.dir.join("lora_init"))?;
    let mut model = load(&adapters)?;
    let base = mean_losses(&mut model, &fixture, false)?;
    report.check("base.loss", relative(&base, &fixture.golden.base.loss), LOSS);

    let settings = &fixture.golden.optimizer;
    let options = model::optimizer(settings, UnhitExperts::Skip);
    let mut optimizer = GpuOptimizer::new(gpu, model.adapters(), &options, settings.steps as u64)?;
    let (mut loss, mut norm) = (Vec::new(), Vec::new());
    for step in 0..settings.steps {
        let batch = &fixture.batches[step % fixture.batches.len()];
        let position = Position { step: step as u64, micro_batch: 0, micro_batches: 1 };
        let found = model.accumulate(batch, &STEP, position, batch.target_count(), &Still)?;
        let outcome = optimizer.step(model.adapters_mut(), settings.lr)?;
        model.refresh()?;
        loss.push(found.loss_sum / found.targets as f64);
        norm.push(outcome.gradient_norm);
    }
    let expected = &fixture.golden.lora.train;
    report.check("lora.loss", relative(&loss, &expected.loss), RUN_LOSS);
    report.check("lora.first_grad_norm", relative(&norm[..1], &expected.grad_norm[..1]), NORM);
    report.note("lora.grad_norm", relative(&norm, &expected.grad_norm));
    let last = mean_losses(&mut model, &fixture, true)?;
    report.check("lora.final_loss", relative(&last, &expected.final_loss), RUN_LOSS);
    Ok(report)
}

fn mean_losses(model: &mut GpuModel, fixture: &Fixture, adapted: bool) -> Result<Vec<f64>> {
    let one = |batch| {
        let report = model.evaluate(batch, adapted)?;
        Ok(report.loss_sum / report.targets as f64)
    };
    fixture.batches.iter().map(one).collect()
}
