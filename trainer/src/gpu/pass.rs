//! What a pass over one packed row knows on a GPU.

use std::ops::Range;

use brightrun_kernels::delta_rule::GpuChunks;
use brightrun_kernels::dropout::Dropout;
use brightrun_kernels::gpu::{Buffer, Gpu};
use brightrun_kernels::rope::GpuRopeTable;
use brightrun_kernels::{Documents, GpuDocuments};
use half::bf16;

use super::adapters::GpuAdapters;
use crate::Result;
use crate::model::PassDropout;

/// One pass over one packed row. A recomputed layer gets the same pass, and so the same masks.
pub(super) struct Pass<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) documents: GpuDocuments,
    /// The documents cut up for the delta rule.
    pub(super) chunks: GpuChunks,
    pub(super) rope: &'a GpuRopeTable,
    pub(super) adapters: &'a GpuAdapters,
    /// Places without a token.
    padding: Vec<Range<usize>>,
    /// Whether the adapters take part.
    pub(super) adapted: bool,
    dropout: Option<PassDropout>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        gpu: &'a Gpu,
        documents: &Documents,
        rope: &'a GpuRopeTable,
        adapters: &'a GpuAdapters,
        dropout: Option<PassDropout>,
    ) -> Result<Self> {
        let padding = documents.iter().map(|document| document.valid_end..document.end);
        Ok(Self {
            gpu,
            documents: GpuDocuments::of(gpu, documents)?,
            chunks: GpuChunks::of(gpu, documents)?,
            rope,
            adapters,
            padding: padding.filter(|places| !places.is_empty()).collect(),
            adapted: true,
            dropout: dropout.filter(|dropout| dropout.probability > 0.0),
        })
    }

    pub(super) fn tokens(&self) -> usize {
        self.documents.tokens()
    }

    /// Memory for a row of so many values for each token.
    pub(super) fn rows(&self, width: usize) -> Result<Buffer<bf16>> {
        Ok(self.gpu.empty(self.tokens() * width)?)
    }

    /// Makes the rows of padding zero.
    pub(super) fn clear_padding(&self, x: &Buffer<bf16>) -> Result<()> {
        let width = x.len() / self.tokens().max(1);
        for places in &self.padding {
            x.part(places.start * width..places.end * width)?.fill_zero()?;
        }
        Ok(())
    }

    pub(super) fn has_padding(&self) -> bool {
        !self.padding.is_empty()
    }

    pub(super) fn dropout(&self, id: u64) -> Option<Dropout> {
        self.dropout.map(|dropout| dropout.of(id))
    }

    /// Dropout of gate, up and down of routed experts.
    pub(super) fn expert_dropout(&self, id: u64) -> Option<[Dropout; 3]> {
        self.dropout.map(|dropout| dropout.of_experts(id))
    }
}
