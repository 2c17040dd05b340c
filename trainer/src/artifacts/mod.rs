//! What a run leaves beside the adapter, and how files are written. Every number in them follows from the measurements
//! ([`history`]) and the settings; nothing here looks at a clock.

pub mod atomic;
pub mod history;
pub mod loss_curve;
pub mod model_card;
mod picture;
pub mod quality;
mod record;
pub mod result;
pub mod tensorboard;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokenizer_files;
pub mod trainer_state;
pub mod training_args;

use std::path::Path;

use serde::Serialize;

pub use record::{BaseModel, RunRecord};

use crate::{Error, Result};
use loss_curve::LossCurve;
use result::FileFact;
use trainer_state::Plan;

/// Writes all artifacts of a run but the adapter itself and the dataset's report, which are there already. The result
/// comes last and lists the others.
pub fn write_all(dir: &Path, record: &RunRecord) -> Result<Vec<FileFact>> {
    let mut files = record.written.to_vec();
    for (name, bytes) in contents(record)? {
        atomic::write(&dir.join(name), &bytes)?;
        files.push(FileFact::of(name, &bytes));
    }
    files.extend(tokenizer_files::copy(&record.base.path, &record.adapter_dir(dir), record.adapter_folder)?);
    let result = json(&record.result(files.clone()))?;
    atomic::write(&dir.join(result::RESULT_FILE), &result)?;
    files.push(FileFact::of(result::RESULT_FILE, &result));
    Ok(files)
}

/// What is written into the output folder, in this order.
fn contents(record: &RunRecord) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let curve = LossCurve::new(record.history, &format!("Training loss of {}", record.job_id))?;
    let plan = Plan {
        max_steps: record.dataset.steps.total,
        num_train_epochs: record.parameters.num_epochs,
        steps_per_epoch: record.dataset.steps.per_epoch,
        batch_size: record.parameters.batch_size,
        eval_steps: record.eval_steps,
        save_steps: record.save_steps,
    };
    let evaluates = record.dataset.split.validation.examples > 0;
    Ok(vec![
        (history::METRICS_FILE, record.history.to_bytes()?),
        (tensorboard::EVENTS_FILE, tensorboard::events_file(record.history, record.started_at)),
        (trainer_state::STATE_FILE, json(&trainer_state::trainer_state(record.history, &plan))?),
        (training_args::ARGS_FILE, json(&training_args::training_args(record.parameters, evaluates)?)?),
        (loss_curve::SVG_FILE, curve.svg().into_bytes()),
        (loss_curve::PNG_FILE, curve.png()?),
        (model_card::CARD_FILE, model_card::model_card(record)?.into_bytes()),
    ])
}

/// JSON for people and programs, with a line end.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Invalid(format!("an artifact cannot be written as JSON: {error}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The name of a file in a folder of the output.
fn within(folder: &str, name: &str) -> String {
    if folder == "." { name.to_owned() } else { format!("{folder}/{name}") }
}
