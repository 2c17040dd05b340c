//! The base model and the LoRA run in full precision.

use std::path::Path;

use anyhow::{Context, Result};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::config::ModelConfig;
use brightrun_trainer::lora::{self, AdapterTensors};
use brightrun_trainer::model::{Model, Nf4Arithmetic};
use brightrun_trainer::optim::{Optimizer, OptimizerOptions, UnhitExperts};
use brightrun_trainer::step::{Gradients, Position, Recompute, StepOptions, accumulate, evaluate};
use brightrun_trainer::weights::{BasePrecision, Checkpoint};
use candle_core::Tensor;

use super::fixture::{Fixture, OptimizerSettings, Series};
use super::measure::{Report, absolute, absolute_rows, largest, relative, share_of_maximum};

/// Everything a run needs, from a checkpoint folder.
pub(super) struct Source {
    pub(super) config: ModelConfig,
    pub(super) checkpoint: Checkpoint,
    pub(super) precision: BasePrecision,
    pub(super) arithmetic: Nf4Arithmetic,
}

impl Source {
    pub(super) fn open(dir: &Path, precision: BasePrecision, arithmetic: Nf4Arithmetic) -> Result<Self> {
        let config = ModelConfig::read(dir)?;
        let checkpoint = Checkpoint::open(dir, &config)?;
        Ok(Self { config, checkpoint, precision, arithmetic })
    }

    pub(super) fn model(&self, adapters: &Adapters) -> Result<Model> {
        Ok(Model::load_with_arithmetic(&self.config, &self.checkpoint, &self.precision, adapters, self.arithmetic)?)
    }

    pub(super) fn adapters(&self, dir: &Path) -> Result<Adapters> {
        let (plan, tensors) = lora::read(dir, &self.config)?;
        Ok(Adapters::from_tensors(&self.config, &plan, &tensors)?)
    }
}

/// Tolerances of the full-precision comparisons.
const VALUES: f64 = 5e-4;
const LOSS: f64 = 2e-5;
const GRADIENT: f64 = 1e-3;
const SERIES: f64 = 1e-3;
const ADAPTER: f64 = 2e-3;

pub(super) fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn validity(batch: &MicroBatch) -> Vec<bool> {
    batch.documents.validity().iter().map(|v| *v == 1.0).collect()
}

pub(super) fn mean_losses(model: &Model, batches: &[MicroBatch]) -> Result<Vec<f64>> {
    batches
        .iter()
        .map(|batch| {
            let report = evaluate(model, batch, false)?;
            Ok(report.loss_sum / report.targets as f64)
        })
        .collect()
}

/// Hidden states, router choices, logits and losses without adapter.
pub(super) fn base(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let source = Source::open(&fixture.base(), BasePrecision::Full, Nf4Arithmetic::Exact)?;
    let model = source.model(&Adapters::none())?;
    let golden = fixture.tensors("golden_base.safetensors")?;
    let batch = fixture.batches.first().context("the fixture has no batch")?;
    let keep = validity(batch);
    let pass = model.pass(&batch.documents, None)?;
    let mut hidden = model.embed(&batch.tokens)?;
    let width = source.config.hidden_size;
    let embed = absolute_rows(&flat(&hidden)?, &golden.floats("hidden.embed")?, width, &keep);
    let (mut states, mut choices, mut weights, mut logits) = (vec![embed], 0usize, vec![], vec![]);
    for (index, layer) in model.layers().iter().enumerate() {
        let output = layer.forward(&hidden, &pass)?;
        hidden = output.hidden;
        states.push(absolute_rows(&flat(&hidden)?, &golden.floats(&format!("hidden.layer.{index}"))?, width, &keep));
        let Some(router) = output.router else { continue };
        let (experts, k) = (router.routing.experts(), router.routing.per_token());
        let expected = golden.floats(&format!("topk_index.layer.{index}"))?;
        let rows = router.routing.chosen().chunks_exact(k).zip(expected.chunks_exact(k)).zip(&keep);
        choices += rows.filter(|((f, e), keep)| **keep && f.iter().zip(*e).any(|(f, e)| *f as f32 != *e)).count();
        let expected = golden.floats(&format!("topk_weight.layer.{index}"))?;
        weights.push(absolute_rows(&flat(&router.weights)?, &expected, k, &keep));
        let expected = golden.floats(&format!("router_logits.layer.{index}"))?;
        logits.push(absolute_rows(&flat(&router.logits)?, &expected, experts, &keep));
    }
    for (index, state) in states.iter().enumerate() {
        let name = if index == 0 { "hidden.embed".into() } else { format!("hidden.layer.{}", index - 1) };
        report.check(&name, *state, VALUES);
    }
    let normed = flat(&model.final_norm(&hidden)?)?;
    report.check(
        "hidden.final_norm",
        absolute_rows(&normed, &golden.floats("hidden.final_norm")?, width, &keep),
        VALUES,
    );
    report.check("router.wrong_choices", choices as f64, 0.0);
    report.check("router.weights", largest(weights.into_iter()), VALUES);
    report.check("router.logits", largest(logits.into_iter()), VALUES);
    let found = flat(&model.logits(&hidden, &pass)?)?;
    report.check(
        "base.logits",
        absolute_rows(&found, &golden.floats("logits")?, source.config.vocab_size, &keep),
        VALUES,
    );
    report.check("base.loss", relative(&mean_losses(&model, &fixture.batches)?, &fixture.golden.base.loss), LOSS);
    if let Some(expected) = fixture.golden.base.aux_loss_masked {
        let found = evaluate(&model, batch, true)?.aux_loss.context("the model has no router")?;
        report.check("base.aux_loss", relative(&[found], &[expected]), LOSS);
    }
    Ok(())
}

/// A finished run.
pub(super) struct Run {
    pub(super) adapters: Adapters,
    pub(super) model: Model,
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    /// Gradients of the first step, before clipping.
    pub(super) first: AdapterTensors,
}

/// How the fixtures' steps are computed.
pub(super) const STEP: StepOptions =
    StepOptions { recompute: Recompute::Layers, dropout: 0.0, seed: 0, neftune_alpha: 0.0, aux_coefficient: None };

/// How the fixture's runs are optimised, with one of the rules for unhit experts.
pub(super) fn optimizer(settings: &OptimizerSettings, unhit_experts: UnhitExperts) -> OptimizerOptions {
    OptimizerOptions {
        beta1: settings.betas[0],
        beta2: settings.betas[1],
        epsilon: settings.eps,
        weight_decay: settings.weight_decay,
        max_gradient_norm: Some(settings.clip),
        unhit_experts,
        ..OptimizerOptions::default()
    }
}

/// Takes the fixture's steps with one of the rules for unhit experts.
pub(super) fn train(source: &Source, fixture: &Fixture, unhit_experts: UnhitExperts) -> Result<Run> {
    let adapters = source.adapters(&fixture.dir.join("lora_init"))?;
    let model = source.model(&adapters)?;
    let settings = &fixture.golden.optimizer;
    let mut optimizer = Optimizer::new(&adapters, optimizer(settings, unhit_experts));
    let (mut loss, mut grad_norm, mut first) = (vec![], vec![], AdapterTensors::new());
    for step in 0..settings.steps {
        let batch = &fixture.batches[step % fixture.batches.len()];
        let mut gradients = Gradients::new(&adapters);
        let position = Position { step: step as u64, micro_batch: 0, micro_batches: 1 };
        let report = accumulate(&model, batch, &STEP, position, batch.target_count(), &mut gradients)?;
        if step == 0 {
            first = adapters.split(|var| gradients.of(var))?;
        }
        let outcome = optimizer.step(&gradients, settings.lr)?;
        loss.push(report.loss_sum / report.targets as f64);
        grad_norm.push(outcome.gradient_norm);
    }
    Ok(Run { adapters, model, loss, grad_norm, first })
}

/// With a quantised base, two correct runs differ by up to this in a router's probabilities once AdamW has turned near-zero gradients into
/// whole steps: where the golden's own margin between chosen and not chosen was smaller, another expert may be right.
const NEAR_TIE: f64 = 1e-4;
/// What such a choice may move a loss by.
const AFTER_TIE: f64 = 2e-2;

/// Compares a run's curves. With `near_ties`, where they part at or after a step in which the golden itself saw a near tie, only the steps
/// before are held to the tolerance, and the rest to [`AFTER_TIE`]; then `false`.
pub(super) fn compare_series(
    name: &str,
    run: &Run,
    expected: &Series,
    fixture: &Fixture,
    tolerance: f64,
    near_ties: bool,
    report: &mut Report,
) -> Result<bool> {
    let apart = |f: &[f64], e: &[f64], limit: f64| f.iter().zip(e).position(|(f, e)| ((f - e) / e).abs() > limit);
    let parted = [apart(&run.loss, &expected.loss, tolerance), apart(&run.grad_norm, &expected.grad_norm, SERIES)];
    let parted = parted.into_iter().flatten().min().unwrap_or(run.loss.len());
    let tied = near_ties && expected.router_margin.iter().take(parted + 1).any(|margin| *margin < NEAR_TIE);
    let last = relative(&mean_losses(&run.model, &fixture.batches)?, &expected.final_loss);
    if parted < run.loss.len() && tied {
        report.note(&format!("{name}.parted_after_a_near_tie_at_step"), parted as f64 + 1.0);
        let before = relative(&run.loss[..parted], &expected.loss[..parted]);
        report.check(&format!("{name}.loss_before_the_tie"), before, tolerance);
        let after = relative(&run.loss[parted..], &expected.loss[parted..]);
        report.check(&format!("{name}.loss_after_the_tie"), largest([after, last].into_iter()), AFTER_TIE);
        report.note(&format!("{name}.grad_norm"), relative(&run.grad_norm, &expected.grad_norm));
        return Ok(false);
    }
    report.check(&format!("{name}.loss"), relative(&run.loss, &expected.loss), tolerance);
    report.check(&format!("{name}.grad_norm"), relative(&run.grad_norm, &expected.grad_norm), SERIES);
    report.check(&format!("{name}.final_loss"), last, tolerance);
    Ok(true)
}

/// Largest difference between two adapters; NaN when their modules differ.
pub(super) fn adapter_difference(found: &AdapterTensors, expected: &AdapterTensors) -> f64 {
    if !found.keys().eq(expected.keys()) {
        return f64::NAN;
    }
    let pairs = found.values().zip(expected.values());
    largest(pairs.flat_map(|(f, e)| [absolute(&f.a.values, &e.a.values), absolute(&f.b.values, &e.b.values)]))
}

/// Rows `t % 4 == 3` of every document that are not padding: the positions of secondary logits.
pub(super) fn sampled_logits(model: &Model, batch: &MicroBatch) -> Result<(Vec<f32>, Vec<bool>)> {
    let pass = model.pass(&batch.documents, None)?;
    let mut hidden = model.embed(&batch.tokens)?;
    for layer in model.layers() {
        hidden = layer.forward(&hidden, &pass)?.hidden.detach();
    }
    let logits = flat(&model.logits(&hidden, &pass)?)?;
    let width = model.config().vocab_size;
    let (mut rows, mut keep) = (Vec::new(), Vec::new());
    for document in batch.documents.iter() {
        for t in (document.start..document.end).skip(3).step_by(4) {
            rows.extend_from_slice(&logits[t * width..][..width]);
            keep.push(t < document.valid_end);
        }
    }
    Ok((rows, keep))
}

/// Compares logits at the sampled positions.
pub(super) fn compare_logits(
    name: &str,
    model: &Model,
    batch: &MicroBatch,
    expected: &[f32],
    tolerance: f64,
    report: &mut Report,
) -> Result<()> {
    let (found, keep) = sampled_logits(model, batch)?;
    report.check(name, absolute_rows(&found, expected, model.config().vocab_size, &keep), tolerance);
    Ok(())
}

/// First gradients, both training runs and the final adapter.
pub(super) fn lora(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let source = Source::open(&fixture.base(), BasePrecision::Full, Nf4Arithmetic::Exact)?;
    let golden = fixture.tensors("golden_lora.safetensors")?;
    let batch = &fixture.batches[0];
    let fresh = source.adapters(&fixture.dir.join("lora_init"))?;
    let expected = golden.floats("logits_init")?;
    compare_logits("lora.logits_init", &source.model(&fresh)?, batch, &expected, VALUES, report)?;

    let run = train(&source, fixture, UnhitExperts::Skip)?;
    let adapted: Vec<&str> = run.first.keys().map(String::as_str).collect();
    let mut modules: Vec<&str> = fixture.golden.lora.adapted_modules.iter().map(String::as_str).collect();
    modules.sort_unstable();
    if adapted != modules {
        report.fail("lora.modules", format!("{} modules are adapted, the golden has {}", adapted.len(), modules.len()));
    }
    let mut worst = 0.0;
    for (path, adapter) in &run.first {
        for (matrix, name) in [(&adapter.a, "lora_A"), (&adapter.b, "lora_B")] {
            let key = format!("grad.base_model.model.{path}.{name}.weight");
            // PEFT has no gradient for an expert without a row: ours is then zero.
            let expected = if golden.has(&key) { golden.floats(&key)? } else { vec![0.0; matrix.values.len()] };
            worst = largest([worst, share_of_maximum(&matrix.values, &expected)].into_iter());
        }
    }
    report.check("lora.first_gradients", worst, GRADIENT);
    compare_series("lora.train", &run, &fixture.golden.lora.train, fixture, SERIES, false, report)?;
    let (_, expected) = lora::read(&fixture.dir.join("lora_final"), &source.config)?;
    let difference = adapter_difference(&run.adapters.tensors()?, &expected);
    report.check("lora.final_adapter", difference, ADAPTER);
    let expected = golden.floats("logits_final")?;
    let (found, keep) = sampled_logits(&run.model, batch)?;
    report.note("lora.logits_final", absolute_rows(&found, &expected, source.config.vocab_size, &keep));

    let run = train(&source, fixture, UnhitExperts::Zero)?;
    compare_series(
        "lora.train_zero_filled",
        &run,
        &fixture.golden.lora.train_zero_filled,
        fixture,
        SERIES,
        false,
        report,
    )?;
    Ok(())
}
