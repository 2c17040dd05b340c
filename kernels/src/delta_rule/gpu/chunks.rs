//! The chunks of the documents of a packed row, as kernels read them.

use super::CHUNK;
use crate::delta_rule::NAME;
use crate::gpu::{Buffer, Gpu};
use crate::{Documents, Error, Result};

/// Numbers of an entry.
const ENTRY: usize = 4;
/// `NO_STATE` of the kernels.
const NO_STATE: u32 = u32::MAX;

/// Which tokens are a chunk, and which chunks a document: uploaded once for all layers of a row.
///
/// A chunk never reaches beyond its document. A state has a place in memory if a chunk ends with it and another of the same
/// document begins with it, so there are fewer of them than the row has whole chunks.
#[derive(Debug)]
pub struct GpuChunks {
    tokens: usize,
    states: usize,
    /// For each document its first token, its tokens, the place of its first state, and 0; long ones first, since walks take
    /// as long as they are.
    documents: Buffer<u32>,
    /// For each chunk its first token, its tokens, and the places of the states before and after it.
    chunks: Buffer<u32>,
}

// === impl GpuChunks ===

impl GpuChunks {
    /// The chunks of these documents, copied to a GPU.
    pub fn of(gpu: &Gpu, documents: &Documents) -> Result<Self> {
        let tokens = documents.tokens();
        if u32::try_from(tokens).is_err() {
            return Err(Error::invalid(NAME, format!("{tokens} tokens in a row; at most {} are possible", u32::MAX)));
        }
        let (mut walks, mut chunks, mut states) = (Vec::with_capacity(documents.iter().len()), Vec::new(), 0);
        for document in documents.iter() {
            walks.push([document.start as u32, document.len() as u32, states, 0]);
            let mut before = NO_STATE;
            for from in (document.start..document.end).step_by(CHUNK) {
                let to = document.end.min(from + CHUNK);
                let after = if to < document.end { states } else { NO_STATE };
                chunks.push([from as u32, (to - from) as u32, before, after]);
                states += u32::from(after != NO_STATE);
                before = after;
            }
        }
        walks.sort_by_key(|[_, tokens, ..]| std::cmp::Reverse(*tokens));
        let (documents, chunks) = (gpu.of(walks.as_flattened())?, gpu.of(chunks.as_flattened())?);
        Ok(Self { tokens, states: states as usize, documents, chunks })
    }

    /// Number of tokens in the row.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of documents.
    pub fn count(&self) -> usize {
        self.documents.len() / ENTRY
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.chunks.len() / ENTRY
    }

    /// A row has at least one document, and a document at least one chunk; here for the usual pair with
    /// [`GpuChunks::len`].
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// States between chunks.
    pub(super) fn states(&self) -> usize {
        self.states
    }

    pub(super) fn documents(&self) -> &Buffer<u32> {
        &self.documents
    }

    pub(super) fn chunks(&self) -> &Buffer<u32> {
        &self.chunks
    }
}
