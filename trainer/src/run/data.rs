//! The dataset of a run: tokenised, split, reported on, and read again document by document.

use std::path::Path;

use super::Parameters;
use crate::Result;
use crate::batch::MicroBatch;
use crate::dataset::batches;
use crate::dataset::facts::Document;
use crate::dataset::packing::{Bin, Packing};
use crate::dataset::prepare::{PrepareOptions, Prepared, Progress, TextModel, prepare};
use crate::dataset::report::{DatasetReport, Source};
use crate::dataset::split::{MOST_VALIDATION_CONVERSATIONS, Split, split};
use crate::dataset::store::TokenStore;

/// Where the dataset is and what is to become of it.
#[derive(Debug, Clone, Copy)]
pub struct DataSpec<'a> {
    /// Training examples.
    pub dataset: &'a Path,
    /// Validation examples, where they have a file of their own.
    pub validation_dataset: Option<&'a Path>,
    /// Folder of the model whose tokenizer and chat template are used.
    pub model_dir: &'a Path,
    /// That model stands in for one that is not there: numbers of tokens are rough.
    pub stand_in_model: bool,
    /// Where tokenised datasets are kept.
    pub cache_dir: &'a Path,
    /// The job's parameters.
    pub parameters: &'a Parameters,
}

/// A dataset that is ready, or refused: its report says which. Only the places of its documents are in memory.
#[derive(Debug)]
pub struct Data {
    training: TokenStore,
    /// Where validation has a file of its own.
    validation: Option<TokenStore>,
    split: Split,
    validation_bins: Vec<Bin>,
    packing: Packing,
    report: DatasetReport,
    notes: Vec<String>,
}

impl Data {
    /// Reads the files, or finds in the cache that this was done before. `progress` is told how many bytes of how many
    /// were read, and can end it.
    pub fn read(spec: &DataSpec<'_>, progress: Progress<'_>) -> Result<Self> {
        let settings = spec.parameters.dataset();
        let model = TextModel::load(spec.model_dir)?;
        let training = read_file(spec, spec.dataset, &model, progress)?;
        let validation = spec.validation_dataset.map(|path| read_file(spec, path, &model, progress)).transpose()?;
        let documents = training.store.documents();
        let split = match &validation {
            Some(validation) => {
                Split { training: all(documents.len()), validation: all(validation.store.documents().len()) }
            }
            None => split(documents, settings.validation_split, MOST_VALIDATION_CONVERSATIONS, settings.seed),
        };
        let validation_source = spec.validation_dataset.zip(validation.as_ref()).map(|(path, file)| source(path, file));
        let packing = settings.packing();
        let training_source = source(spec.dataset, &training);
        let mut report = DatasetReport::new(&training_source, validation_source.as_ref(), &split, settings)?;
        report.rough_tokens = spec.stand_in_model;
        let measured = validation.as_ref().map_or(documents, |validation| validation.store.documents());
        let validation_bins = packing.bins(measured, &split.validation)?;
        let notes = [Some(&training), validation.as_ref()].into_iter().flatten().flat_map(|file| file.notes.clone());
        Ok(Self {
            notes: notes.collect(),
            training: training.store,
            validation: validation.map(|validation| validation.store),
            split,
            validation_bins,
            packing,
            report,
        })
    }

    /// What there is to say about it.
    pub fn report(&self) -> &DatasetReport {
        &self.report
    }

    /// What the run's owner should know.
    pub fn warnings(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.report.warnings()).collect()
    }

    /// The tokenised training file, both sides of a split included.
    pub fn training(&self) -> &TokenStore {
        &self.training
    }

    /// The documents that are learnt from, by their place in [`Data::training`].
    pub fn training_side(&self) -> &[u32] {
        &self.split.training
    }

    /// The tokenised validation file, where there is one.
    pub fn validation(&self) -> Option<&TokenStore> {
        self.validation.as_ref()
    }

    /// Whether there is anything to measure with.
    pub(crate) fn has_validation(&self) -> bool {
        !self.validation_bins.is_empty()
    }

    /// The documents of every step of an epoch.
    pub(crate) fn epoch(&self, epoch: u32) -> Vec<Vec<u32>> {
        let settings = &self.report.settings;
        batches::epoch_steps(&self.split.training, settings.batch_size, settings.seed, epoch)
    }

    /// Targets of some training documents.
    pub(crate) fn targets(&self, documents: &[u32]) -> usize {
        self.chosen(documents).map(|document| document.targets as usize).sum()
    }

    /// Tokens of some training documents; padding is none of them.
    pub(crate) fn tokens(&self, documents: &[u32]) -> u64 {
        self.chosen(documents).map(|document| u64::from(document.tokens)).sum()
    }

    fn chosen(&self, documents: &[u32]) -> impl Iterator<Item = &Document> {
        documents.iter().map(|&index| &self.training.documents()[index as usize])
    }

    /// The micro-batches of a step.
    pub(crate) fn training_bins(&self, documents: &[u32]) -> Result<Vec<Bin>> {
        self.packing.bins(self.training.documents(), documents)
    }

    /// Reads a micro-batch of training documents.
    pub(crate) fn training_batch(&self, bin: &Bin) -> Result<MicroBatch> {
        batches::micro_batch(bin, |index| self.training.sequence(index as usize))
    }

    /// The micro-batches of the validation side.
    pub(crate) fn validation_bins(&self) -> &[Bin] {
        &self.validation_bins
    }

    /// Reads a micro-batch of validation documents.
    pub(crate) fn validation_batch(&self, bin: &Bin) -> Result<MicroBatch> {
        let store = self.validation.as_ref().unwrap_or(&self.training);
        batches::micro_batch(bin, |index| store.sequence(index as usize))
    }
}

fn read_file(spec: &DataSpec<'_>, path: &Path, model: &TextModel, progress: Progress<'_>) -> Result<Prepared> {
    let parameters = spec.parameters;
    let options = PrepareOptions {
        max_length: parameters.max_seq_length,
        train_on_prompt: parameters.train_on_prompt,
        learn_every_turn: parameters.train_on_all_turns,
    };
    prepare(path, model, &options, spec.cache_dir, progress)
}

fn source<'a>(path: &Path, file: &'a Prepared) -> Source<'a> {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    Source { name, facts: &file.facts, documents: file.store.documents() }
}

fn all(count: usize) -> Vec<u32> {
    (0..count as u32).collect()
}
