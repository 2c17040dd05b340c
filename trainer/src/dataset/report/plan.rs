//! What becomes of the examples of a dataset: sides, micro-batches, steps.

use std::collections::HashSet;

use serde::Serialize;

use super::{Settings, share};
use crate::{
    Result,
    dataset::{batches, facts::Document},
};

/// Who is on which side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// `conversation`: some conversations of the file are kept for validation; `file`: there is a file of its own;
    /// `none`: everything is learnt.
    pub by: SplitKind,
    /// To learn from.
    pub training: SideReport,
    /// To measure with.
    pub validation: SideReport,
}

/// How the validation side is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitKind {
    /// There is none.
    None,
    /// Some conversations of the training file.
    Conversation,
    /// A file of its own.
    File,
}

/// One side of the split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SideReport {
    /// Examples.
    pub examples: u64,
    /// Conversations.
    pub conversations: u64,
    /// Tokens, after cutting.
    pub tokens: u64,
    /// Tokens that are learnt or measured.
    pub learnt_tokens: u64,
}

/// How examples are put into micro-batches. The numbers are those of the first epoch; other epochs have another order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackingReport {
    /// Most tokens of a micro-batch.
    pub capacity: u32,
    /// Micro-batches of an epoch.
    pub micro_batches_per_epoch: u64,
    /// Share of the capacity that real tokens fill.
    pub fill_share: f64,
    /// Share of the computed tokens that is padding.
    pub padding_share: f64,
}

/// Optimiser steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepsReport {
    /// Of one epoch.
    pub per_epoch: u64,
    /// Of the whole run.
    pub total: u64,
}

// === impl SideReport ===

impl SideReport {
    pub(super) fn new(documents: &[Document], side: &[u32]) -> Self {
        let chosen = || side.iter().map(|&index| &documents[index as usize]);
        Self {
            examples: side.len() as u64,
            conversations: chosen().map(|document| document.conversation).collect::<HashSet<_>>().len() as u64,
            tokens: chosen().map(|document| u64::from(document.tokens)).sum(),
            learnt_tokens: chosen().map(|document| u64::from(document.targets)).sum(),
        }
    }
}

// === impl PackingReport ===

impl PackingReport {
    pub(super) fn new(documents: &[Document], training: &[u32], settings: &Settings) -> Result<Self> {
        let packing = settings.packing();
        let (mut micro_batches, mut tokens, mut places) = (0u64, 0u64, 0u64);
        for step in batches::epoch_steps(training, settings.batch_size, settings.seed, 1) {
            for bin in packing.bins(documents, &step)? {
                let real: u64 = bin.documents.iter().map(|&index| u64::from(documents[index as usize].tokens)).sum();
                micro_batches += 1;
                tokens += real;
                places += bin.padded_to.map_or(real, |row| u64::from(row) * bin.documents.len() as u64);
            }
        }
        Ok(Self {
            capacity: packing.capacity,
            micro_batches_per_epoch: micro_batches,
            fill_share: share(tokens, micro_batches * u64::from(packing.capacity)),
            padding_share: share(places - tokens, places),
        })
    }
}
