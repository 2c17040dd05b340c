//! The end of a run: the adapter is written, read back, measured once more, and everything is told.

use std::path::Path;

use super::learner::Learner;
use super::training::Training;
use super::watch::Watch;
use super::{ADAPTER_DIR, Data, RunSpec, RunSummary, reading};
use crate::adapters::Adapters;
use crate::artifacts::result::{BaseCheck, Cost, FileFact, Program, Proof, RESULT_FILE, ReloadCheck, RunStatus};
use crate::artifacts::{self, BaseModel, RunRecord, atomic, loss_curve, model_card};
use crate::dataset::report::REPORT_FILE;
use crate::events::{Event, Stage};
use crate::lora::{self, AdapterDtype, AdapterFormat};
use crate::proof::{AdapterDigest, Digest, OpCheck};
use crate::{Error, Result, file_sum};

/// How far the loss of the saved adapter may be from that of the adapter in memory, relative to it. What bf16 rounds
/// away moves a loss by some parts in ten thousand.
const BF16_TOLERANCE: f64 = 5e-3;
/// In f32 nothing is rounded, and the same numbers give the same loss.
const F32_TOLERANCE: f64 = 1e-6;

/// What was measured before the first step.
pub(super) struct Before {
    pub(super) ops: Vec<OpCheck>,
    pub(super) base: Digest,
    pub(super) adapter: AdapterDigest,
}

/// Ends a run whose steps are taken.
pub(super) fn close(
    spec: &RunSpec,
    data: &Data,
    learner: &Learner,
    training: &mut Training,
    before: Before,
    watch: &mut Watch,
) -> Result<RunSummary> {
    if let Some(reason) = training.standing.ended_early.clone() {
        watch.warn(reason);
    }
    let adapter_step = deliver(spec, learner, training, watch)?;
    watch.stage(Stage::Saving);
    let measured = reading::comparing_loss(training.engine, data, watch)?;
    training.engine.give_adapters()?;
    let adapter = learner.adapters.changed_since(&before.adapter)?;
    let dir = spec.output_dir.join(ADAPTER_DIR);
    let format = AdapterFormat { dialect: spec.parameters.adapter_dialect, dtype: spec.parameters.adapter_dtype };
    let tensors = learner.adapters.tensors()?;
    lora::write(&dir, &learner.config, &learner.plan, &tensors, format, &spec.base_model_name)?;
    drop(tensors);
    read_back(&dir, learner)?;
    training.engine.take_adapters()?;
    let reloaded = ReloadCheck {
        reported_loss: measured,
        reloaded_loss: reading::comparing_loss(training.engine, data, watch)?,
        tolerance: match spec.parameters.adapter_dtype {
            AdapterDtype::Bf16 => BF16_TOLERANCE,
            AdapterDtype::F32 => F32_TOLERANCE,
        },
    };
    let base = BaseCheck {
        sha256_before: before.base.to_string(),
        sha256_after: training.engine.digest(watch.around.stop)?.to_string(),
    };
    let proof = Proof { base: Some(base), adapter: Some(adapter), ops: before.ops, reloaded: Some(reloaded) };
    tell(spec, data, learner, training, adapter_step, &proof, watch)
}

/// Puts the best adapter back where that is the one to deliver; gives the step it is of.
fn deliver(spec: &RunSpec, learner: &Learner, training: &mut Training, watch: &mut Watch) -> Result<u64> {
    let steps = training.standing.steps;
    let best = training.standing.rules.best().filter(|best| spec.parameters.delivers_best() && best.step != steps);
    let Some(best) = best else { return Ok(steps) };
    let found = training.checkpoints.best()?;
    found.notes.into_iter().for_each(|note| watch.warn(note));
    match found.checkpoint.filter(|checkpoint| checkpoint.step == best.step) {
        Some(checkpoint) => {
            checkpoint.restore_adapters(&learner.adapters)?;
            training.engine.take_adapters()?;
            Ok(best.step)
        }
        None => {
            watch.warn(format!(
                "the adapter of step {}, the best one, was not kept; that of step {steps} is delivered",
                best.step
            ));
            Ok(steps)
        }
    }
}

/// Sets the adapters to what the file says.
fn read_back(dir: &Path, learner: &Learner) -> Result<()> {
    let (plan, tensors) = lora::read(dir, &learner.config)?;
    let saved = Adapters::from_tensors(&learner.config, &plan, &tensors)?;
    let (own, saved) = (learner.adapters.parameters(), saved.parameters());
    let names = |parameters: &[crate::adapters::Parameter]| -> Vec<String> {
        parameters.iter().map(|parameter| parameter.name.clone()).collect()
    };
    if names(&own) != names(&saved) {
        return Err(Error::file(dir, "the adapter that was written does not read back with the same modules"));
    }
    own.iter().zip(&saved).try_for_each(|(own, saved)| own.set_values(&saved.values()?))
}

/// Writes everything that tells of the run.
fn tell(
    spec: &RunSpec,
    data: &Data,
    learner: &Learner,
    training: &Training,
    adapter_step: u64,
    proof: &Proof,
    watch: &mut Watch,
) -> Result<RunSummary> {
    let failures = proof.failures();
    let error = (!failures.is_empty()).then(|| format!("the run does not prove itself: {}", failures.join("; ")));
    let written = [
        format!("{ADAPTER_DIR}/{}", lora::TENSORS_FILE),
        format!("{ADAPTER_DIR}/{}", lora::CONFIG_FILE),
        REPORT_FILE.to_owned(),
    ];
    let written = written.into_iter().map(|name| fact(&spec.output_dir, name)).collect::<Result<Vec<_>>>()?;
    let standing = &training.standing;
    let base = BaseModel {
        asked: spec.base_model_asked.clone(),
        name: spec.base_model_name.clone(),
        path: spec.model_dir.clone(),
        revision: spec.base_model_revision.clone(),
        sha256: proof.base.as_ref().map(|base| base.sha256_before.clone()),
        ..BaseModel::default()
    };
    let record = RunRecord {
        job_id: &spec.job_id,
        status: if error.is_none() { RunStatus::Success } else { RunStatus::Failed },
        error: error.as_deref(),
        program: &Program {
            name: env!("CARGO_PKG_NAME").replace("-trainer", ""),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        base: &base,
        history: &watch.history,
        parameters: &spec.parameters,
        plan: &learner.plan,
        dataset: data.report(),
        base_parameters: learner.base_parameters(),
        trainable_parameters: learner.adapters.parameter_count(),
        adapter_step,
        started_at: standing.started_at,
        eval_steps: spec.parameters.evaluation_interval(data.report().steps.per_epoch),
        save_steps: spec.parameters.save_steps,
        adapter_folder: ADAPTER_DIR,
        written: &written,
        proof,
        warnings: &watch.warnings,
        cost: spec.usd_per_hour.map(|price| {
            let summary = watch.history.summary();
            let gpu_seconds = summary.training_seconds + summary.evaluation_seconds;
            Cost { gpu_seconds, usd: gpu_seconds / 3600.0 * price }
        }),
    };
    artifacts::write_all(&spec.output_dir, &record)?;
    let quality = artifacts::quality::Quality::of_history(&watch.history);
    if let Some(error) = error {
        return Err(Error::Invalid(error));
    }
    watch.emit(&Event::Finished { steps: standing.steps, final_loss: standing.smoothed_loss });
    Ok(RunSummary {
        steps: standing.steps,
        epochs: standing.epochs,
        first_loss: standing.first_loss,
        final_loss: standing.smoothed_loss,
        validation_loss: standing.validation_loss,
        adapter_step,
        stars: quality.overall_score,
        trainable_parameters: learner.adapters.parameter_count(),
        tokens: standing.tokens,
        adapter_dir: spec.output_dir.join(ADAPTER_DIR),
        loss_curve: spec.output_dir.join(loss_curve::PNG_FILE),
        dataset_report: spec.output_dir.join(REPORT_FILE),
        model_card: spec.output_dir.join(model_card::CARD_FILE),
        result: spec.output_dir.join(RESULT_FILE),
        warnings: watch.warnings.clone(),
    })
}

/// Length and hash of a file in the output folder.
fn fact(output: &Path, name: String) -> Result<FileFact> {
    let sum = file_sum::sum(&output.join(&name))?;
    Ok(FileFact { name, bytes: sum.bytes, sha256: hex::encode(sum.sha256) })
}

/// Removes the checkpoints of a run that is over: what they hold is delivered. All at once, for who goes on from the
/// newest one needs the best one too. Where that fails, nothing is lost but room.
pub(super) fn clear(dir: &Path, summary: &mut RunSummary, watch: &mut Watch) {
    if let Err(error) = atomic::remove_folder(dir) {
        let warning = format!("the checkpoints, which are not needed any more, are still there: {error}");
        watch.warn(warning.clone());
        summary.warnings.push(warning);
    }
}
