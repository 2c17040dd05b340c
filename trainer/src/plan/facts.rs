//! What a plan knows of the dataset: the lengths of its examples, and what becomes of them in steps and micro-batches.

use std::borrow::Cow;

use serde::Serialize;

use super::layers::{BLOCK, BatchShape};
use crate::Result;
use crate::dataset::batches;
use crate::dataset::facts::Document;
use crate::dataset::packing::{Bin, Packing};
use crate::run::Data;
use crate::run::Parameters;

/// Examples that are packed to find the largest micro-batch; a run with more of them is planned from these.
const MOST_VISITS: usize = 400_000;

/// The examples of a run.
#[derive(Debug, Clone)]
pub struct DataFacts<'a> {
    documents: Cow<'a, [Document]>,
    training: Cow<'a, [u32]>,
    /// Tokens of the validation side.
    validation_tokens: u64,
    /// Lengths are assumed: no dataset was read.
    assumed: bool,
}

/// What a run computes with, for one capacity of its micro-batches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// Optimiser steps.
    pub steps: u64,
    /// Training examples.
    pub examples: u64,
    /// Tokens of the whole run.
    pub tokens: u64,
    /// The same with padding: what is computed.
    pub computed_tokens: u64,
    /// Those of them that have a target.
    pub target_tokens: u64,
    /// Micro-batches of the whole run.
    pub micro_batches: u64,
    /// Tokens of all evaluations.
    pub validation_tokens: u64,
    /// Tokens of the largest micro-batch.
    pub largest_micro_batch: u64,
    /// Lengths are assumed: no dataset was read.
    pub assumed: bool,
    /// Σ length² over Σ length: how many tokens a token's document has, on average.
    #[serde(skip)]
    pub(super) mean_document: f64,
    #[serde(skip)]
    pub(super) largest: BatchShape,
    #[serde(skip)]
    pub(super) accumulates: bool,
}

// === impl DataFacts ===

impl<'a> DataFacts<'a> {
    /// Of a dataset that was read.
    pub fn of(data: &'a Data) -> Self {
        Self {
            documents: Cow::Borrowed(data.training().documents()),
            training: Cow::Borrowed(data.training_side()),
            validation_tokens: data.report().split.validation.tokens,
            assumed: false,
        }
    }

    /// Of examples of these lengths, all of them learnt from; `targets` is the share of tokens that have one.
    pub fn from_lengths(lengths: impl IntoIterator<Item = u32>, targets: f64) -> Self {
        let document = |(line, tokens): (u64, u32)| Document {
            line,
            conversation: line,
            offset: 0,
            tokens: tokens.max(1),
            targets: (f64::from(tokens.saturating_sub(1)) * targets).round() as u32,
            whole_tokens: tokens,
            cut_turns: 0,
        };
        let documents: Vec<Document> = (1..).zip(lengths).map(document).collect();
        let training = (0..documents.len() as u32).collect();
        Self { documents: Cow::Owned(documents), training: Cow::Owned(training), validation_tokens: 0, assumed: false }
    }

    /// Of a dataset that nobody has read: `examples` of `tokens` in all, their lengths spread by half around the mean, none
    /// longer than `longest`; half of the tokens have a target.
    pub fn assumed(examples: u64, tokens: u64, longest: usize) -> Self {
        const SPREAD: [f64; 5] = [0.5, 0.75, 1.0, 1.25, 1.5];
        let mean = tokens as f64 / examples.max(1) as f64;
        let length = |index: u64| (mean * SPREAD[(index % 5) as usize]).clamp(2.0, longest.max(2) as f64) as u32;
        let facts = Self::from_lengths((0..examples.clamp(1, u64::from(u32::MAX))).map(length), 0.5);
        Self { assumed: true, ..facts }
    }

    /// The same examples, cut to a shorter length.
    pub(super) fn cut(&self, longest: usize) -> DataFacts<'static> {
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        let cut = |document: &Document| {
            let tokens = document.tokens.min(longest);
            Document { tokens, targets: document.targets.min(tokens.saturating_sub(1)), ..*document }
        };
        DataFacts {
            documents: self.documents.iter().map(cut).collect(),
            training: Cow::Owned(self.training.to_vec()),
            validation_tokens: self.validation_tokens,
            assumed: self.assumed,
        }
    }

    /// Tokens of the longest training example.
    pub(super) fn longest(&self) -> u32 {
        self.chosen(&self.training).map(|document| document.tokens).max().unwrap_or(1)
    }

    /// What the run computes with when its micro-batches hold up to `capacity` tokens.
    pub(super) fn work(&self, parameters: &Parameters, capacity: u32) -> Result<Work> {
        let settings = parameters.dataset();
        let packing = Packing { capacity, packed: settings.packing };
        let steps = settings.steps(self.training.len());
        let mut sums = Sums::default();
        'epochs: for epoch in 1..=settings.num_epochs {
            for step in batches::epoch_steps(&self.training, settings.batch_size, settings.seed, epoch) {
                if sums.steps == steps.total || sums.documents >= MOST_VISITS {
                    break 'epochs;
                }
                let bins = packing.bins(&self.documents, &step)?;
                sums.step(self, &bins, step.len());
            }
        }
        let all = if sums.steps == 0 { 0.0 } else { steps.total as f64 / sums.steps as f64 };
        let scaled = |value: u64| (value as f64 * all).round() as u64;
        let evaluations = steps.total.div_ceil(parameters.evaluation_interval(steps.per_epoch));
        Ok(Work {
            steps: steps.total,
            examples: self.training.len() as u64,
            tokens: scaled(sums.tokens),
            computed_tokens: scaled(sums.computed),
            target_tokens: scaled(sums.targets),
            micro_batches: scaled(sums.micro_batches),
            validation_tokens: self.validation_tokens * evaluations,
            largest_micro_batch: sums.largest.tokens,
            assumed: self.assumed,
            mean_document: if sums.computed == 0 { 0.0 } else { sums.squares / sums.computed as f64 },
            largest: sums.largest,
            accumulates: sums.accumulates,
        })
    }

    fn chosen(&self, documents: &[u32]) -> impl Iterator<Item = &Document> {
        documents.iter().map(|&index| &self.documents[index as usize])
    }

    fn shape(&self, bin: &Bin) -> BatchShape {
        let length = |document: &Document| u64::from(bin.padded_to.unwrap_or(document.tokens));
        let lengths = || self.chosen(&bin.documents).map(length);
        BatchShape {
            tokens: lengths().sum(),
            documents: bin.documents.len() as u64,
            longest: lengths().max().unwrap_or_default(),
            chunks: lengths().map(|length| length.div_ceil(BLOCK)).sum(),
            targets: self.chosen(&bin.documents).map(|document| u64::from(document.targets)).sum(),
            padded: self.chosen(&bin.documents).any(|document| bin.padded_to.is_some_and(|row| row != document.tokens)),
        }
    }
}

/// What was seen of the steps so far.
#[derive(Debug, Default)]
struct Sums {
    steps: u64,
    documents: usize,
    tokens: u64,
    computed: u64,
    targets: u64,
    micro_batches: u64,
    squares: f64,
    largest: BatchShape,
    accumulates: bool,
}

// === impl Sums ===

impl Sums {
    fn step(&mut self, facts: &DataFacts<'_>, bins: &[Bin], documents: usize) {
        self.steps += 1;
        self.documents += documents;
        self.micro_batches += bins.len() as u64;
        self.accumulates |= bins.len() > 1;
        for bin in bins {
            let shape = facts.shape(bin);
            self.tokens += facts.chosen(&bin.documents).map(|document| u64::from(document.tokens)).sum::<u64>();
            self.computed += shape.tokens;
            self.targets += shape.targets;
            self.squares += facts
                .chosen(&bin.documents)
                .map(|document| f64::from(bin.padded_to.unwrap_or(document.tokens)).powi(2))
                .sum::<f64>();
            // Each side of the largest by itself: a micro-batch of one long document costs more than its tokens say.
            let largest = &mut self.largest;
            largest.tokens = largest.tokens.max(shape.tokens);
            largest.documents = largest.documents.max(shape.documents);
            largest.longest = largest.longest.max(shape.longest);
            largest.chunks = largest.chunks.max(shape.chunks);
            largest.targets = largest.targets.max(shape.targets);
            largest.padded |= shape.padded;
        }
    }
}
