//! The loss of a model on a dataset, measured as a run measures its validation side: the same data, the same
//! micro-batches, the same order of additions, so the same bits.

use std::path::Path;

use serde::Serialize;

use crate::adapters::Adapters;
use crate::batch::MicroBatch;
use crate::config::ModelConfig;
use crate::engine::{Device, GpuToUse};
use crate::gpu::{GpuModel, Source};
use crate::model::Model;
use crate::run::Data;
use crate::step::{MicroReport, evaluate_adapted};
use crate::weights::{BasePrecision, Checkpoint};
use crate::{Error, Result};

/// A base model and, where there is one, an adapter for it, loaded where its losses are computed: in memory once, and measured
/// with the adapter or without.
pub enum Subject {
    /// On the processor.
    Processor(Box<Model>),
    /// On a GPU.
    Gpu(Box<GpuModel>),
}

/// What of a dataset is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Every example.
    All,
    /// The side that a run with the same seed and share keeps for validation.
    Validation,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Mean loss per target token.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
}

/// How much there is to measure with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Examples.
    pub examples: u64,
    /// Their tokens, after cutting.
    pub tokens: u64,
    /// Tokens with a target: those that the loss is about.
    pub target_tokens: u64,
}

// === impl Extent ===

impl Extent {
    /// Of a part of a dataset; an error where nothing is in it.
    pub fn of(data: &Data, part: Part) -> Result<Self> {
        let split = &data.report().split;
        let extent = match part {
            Part::All => {
                let documents = data.training().documents();
                Self {
                    examples: data.report().training.examples,
                    tokens: documents.iter().map(|document| u64::from(document.tokens)).sum(),
                    target_tokens: documents.iter().map(|document| u64::from(document.targets)).sum(),
                }
            }
            Part::Validation => Self {
                examples: split.validation.examples,
                tokens: split.validation.tokens,
                target_tokens: split.validation.learnt_tokens,
            },
        };
        match (extent.target_tokens, part) {
            (0, Part::All) => Err(Error::Invalid("the dataset has no token to measure with".into())),
            (0, Part::Validation) => Err(Error::Invalid(
                "nothing of the dataset is kept for validation; measure all of it, or ask for a larger share".into(),
            )),
            _ => Ok(extent),
        }
    }
}

// === impl Subject ===

impl Subject {
    /// Reads both from their folders. A GPU's ops are compared with their references before, as a run does.
    pub fn open(
        base_dir: &Path,
        adapter_dir: Option<&Path>,
        precision: &BasePrecision,
        gpu: Option<GpuToUse<'_>>,
        seed: u64,
    ) -> Result<Self> {
        let device = Device::open(gpu)?;
        let Device::Gpu { gpu, .. } = &device else {
            return Ok(Self::Processor(Box::new(Model::open(base_dir, adapter_dir, precision)?)));
        };
        let config = ModelConfig::read(base_dir)?;
        let checkpoint = Checkpoint::open(base_dir, &config)?;
        let adapters = Adapters::read(adapter_dir, &config)?;
        device.self_test(seed)?;
        Ok(Self::Gpu(Box::new(GpuModel::load(gpu, &config, Source::Checkpoint(&checkpoint), precision, &adapters)?)))
    }

    fn loss(&mut self, batch: &MicroBatch, adapted: bool) -> Result<MicroReport> {
        match self {
            Self::Processor(model) => evaluate_adapted(model, batch, false, adapted),
            Self::Gpu(model) => model.evaluate(batch, adapted),
        }
    }
}

/// Measures a part of a dataset, with the adapter or without; `progress` is told how many micro-batches of how many are done.
pub fn evaluate(
    subject: &mut Subject,
    data: &Data,
    part: Part,
    adapted: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<Measured> {
    let extent = Extent::of(data, part)?;
    let every: Vec<u32> = (0..data.training().documents().len() as u32).collect();
    let of_all = match part {
        Part::All => data.training_bins(&every)?,
        Part::Validation => Vec::new(),
    };
    let bins = if part == Part::All { &of_all } else { data.validation_bins() };
    let (mut loss_sum, mut targets) = (0.0, 0);
    for (index, bin) in bins.iter().enumerate() {
        progress(index as u64, bins.len() as u64);
        let batch = if part == Part::All { data.training_batch(bin)? } else { data.validation_batch(bin)? };
        let report = subject.loss(&batch, adapted)?;
        loss_sum += report.loss_sum;
        targets += report.targets as u64;
    }
    if targets != extent.target_tokens {
        return Err(Error::Invalid(format!(
            "the tokenised dataset has {targets} targets where its list says {}; empty the cache folder and run again",
            extent.target_tokens
        )));
    }
    let loss = loss_sum / targets as f64;
    if !loss.is_finite() {
        return Err(Error::Invalid(format!("the loss is {loss}: the model or its adapter gives no finite numbers")));
    }
    Ok(Measured { loss, perplexity: loss.exp() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;
    use crate::run::{DataSpec, Parameters};

    fn data(folder: &Path, parameters: &Parameters) -> Data {
        let spec = DataSpec {
            dataset: &folder.join("data.jsonl"),
            validation_dataset: None,
            model_dir: &folder.join("base"),
            stand_in_model: false,
            cache_dir: &folder.join("cache"),
            parameters,
        };
        Data::read(&spec, &|_, _| std::ops::ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn all_of_a_dataset_and_a_side_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        demo::write_model(&base).unwrap();
        let line = |id: &str, answer: &str| {
            let turns =
                serde_json::json!([{ "role": "user", "content": "Why?" }, { "role": "assistant", "content": answer }]);
            format!("{}\n", serde_json::json!({ "conversation_id": id, "turns": turns }))
        };
        let text = [line("a", "Because."), line("b", "The chain is dry."), line("c", "Oil it.")].concat();
        std::fs::write(folder.path().join("data.jsonl"), text).unwrap();
        let mut subject = Subject::open(&base, None, &BasePrecision::nf4(), None, 0).unwrap();

        let all = data(folder.path(), &Parameters { validation_split: 0.0, ..Parameters::default() });
        let extent = Extent::of(&all, Part::All).unwrap();
        assert_eq!((extent.examples, extent.target_tokens), (3, all.report().training.learnt_tokens));
        let measured = evaluate(&mut subject, &all, Part::All, true, &|_, _| {}).unwrap();
        assert_eq!(measured.perplexity, measured.loss.exp());
        let error = evaluate(&mut subject, &all, Part::Validation, true, &|_, _| {}).unwrap_err().to_string();
        assert!(error.contains("nothing of the dataset is kept for validation"), "{error}");

        // Both sides together are the whole.
        let halves = data(folder.path(), &Parameters { validation_split: 0.34, ..Parameters::default() });
        let side = Extent::of(&halves, Part::Validation).unwrap();
        assert!(side.examples == 1 && side.target_tokens < extent.target_tokens);
        assert_eq!(Extent::of(&halves, Part::All).unwrap(), extent);
        let validation = evaluate(&mut subject, &halves, Part::Validation, true, &|_, _| {}).unwrap();
        assert_ne!(validation.loss, measured.loss);
    }
}
