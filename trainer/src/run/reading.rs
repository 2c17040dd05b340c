//! What a run reads: the dataset, its own measurements, the losses of documents.

use std::fs;
use std::ops::ControlFlow;

use super::watch::Watch;
use super::{Data, DataSpec, RunSpec};
use crate::artifacts::history::History;
use crate::batch::MicroBatch;
use crate::checkpoint::Restored;
use crate::dataset::report::REPORT_FILE;
use crate::engine::Engine;
use crate::events::Event;
use crate::{Error, Result};

/// Micro-batches that stand in for a validation side where there is none.
const STAND_INS: usize = 4;

/// Reads the dataset and leaves its report, also where the dataset is refused.
pub(super) fn data(spec: &RunSpec, watch: &mut Watch) -> Result<Data> {
    let input = DataSpec {
        dataset: &spec.dataset,
        validation_dataset: spec.validation_dataset.as_deref(),
        model_dir: &spec.model_dir,
        stand_in_model: false,
        cache_dir: &spec.cache_dir,
        parameters: &spec.parameters,
    };
    let around = watch.around;
    let data = Data::read(&input, &|bytes, total| {
        around.sink.emit(&Event::Reading { bytes, total });
        // A run that has not begun yet has nothing to go on from.
        if around.stop.asked().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    fs::create_dir_all(&spec.output_dir).map_err(Error::io("cannot create", &spec.output_dir))?;
    let report = spec.output_dir.join(REPORT_FILE);
    data.report().write(&report)?;
    if let Some(refusal) = data.report().refusal(&report) {
        return Err(refusal);
    }
    data.warnings().into_iter().for_each(|warning| watch.warn(warning));
    Ok(data)
}

/// The measurements of a checkpoint.
pub(super) fn history(restored: &Restored) -> Result<History> {
    History::from_reader(&restored.metrics[..], restored.folder())
}

/// The mean loss of the validation side.
pub(super) fn validation_loss(engine: &mut dyn Engine, data: &Data, watch: &Watch) -> Result<f64> {
    let batches = data.validation_bins().iter().map(|bin| data.validation_batch(bin));
    let (loss, targets) = mean_loss(engine, batches, watch)?;
    same_targets(targets, data.report().split.validation.learnt_tokens)?;
    Ok(loss)
}

/// A loss by which two adapters are compared: that of the validation side, or of the first documents where there is none.
pub(super) fn comparing_loss(engine: &mut dyn Engine, data: &Data, watch: &Watch) -> Result<f64> {
    if data.has_validation() {
        return validation_loss(engine, data, watch);
    }
    let bins = match data.epoch(1).first() {
        Some(documents) => data.training_bins(documents)?,
        None => Vec::new(),
    };
    let batches = bins.iter().take(STAND_INS).map(|bin| data.training_batch(bin));
    Ok(mean_loss(engine, batches, watch)?.0)
}

fn mean_loss(
    engine: &mut dyn Engine,
    batches: impl Iterator<Item = Result<MicroBatch>>,
    watch: &Watch,
) -> Result<(f64, u64)> {
    let (mut loss_sum, mut targets) = (0.0, 0);
    for batch in batches {
        watch.go_on()?;
        let report = engine.evaluate(&batch?)?;
        loss_sum += report.loss_sum;
        targets += report.targets;
    }
    Ok((loss_sum / targets as f64, targets as u64))
}

/// What was read from the store is what its list of documents says.
pub(super) fn same_targets(seen: u64, expected: u64) -> Result<()> {
    if seen == expected {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the tokenised dataset has {seen} targets where its list says {expected}; empty the cache folder and run again"
    )))
}
