//! The documents of a packed row in a GPU's memory.

use std::iter::repeat_n;

use super::{Document, Documents};
use crate::gpu::{Buffer, Gpu};
use crate::{Error, Result};

const OP: &str = "documents";
/// Lists begin at multiples of 256 bytes, as buffers do.
const GRAIN: usize = 64;

/// Where documents begin and end, as kernels read it: every op that mixes positions takes this. Padding belongs to the
/// document that it follows.
#[derive(Debug)]
pub struct GpuDocuments {
    starts: Buffer<u32>,
    ends: Buffer<u32>,
    positions: Buffer<u32>,
    offsets: Buffer<u32>,
    longest: usize,
}

// === impl GpuDocuments ===

impl GpuDocuments {
    /// The documents, copied to a GPU: all lists at once.
    pub fn of(gpu: &Gpu, documents: &Documents) -> Result<Self> {
        let tokens = documents.tokens();
        if u32::try_from(tokens).is_err() {
            return Err(Error::invalid(OP, format!("{tokens} tokens in a row; at most {} are possible", u32::MAX)));
        }
        let each = |value: fn(&Document) -> usize| -> Vec<u32> {
            documents.iter().flat_map(|document| repeat_n(value(document) as u32, document.len())).collect()
        };
        let (starts, ends) = (each(|document| document.start), each(|document| document.end));
        let offsets = [0].into_iter().chain(documents.iter().map(|document| document.end as u32)).collect::<Vec<_>>();
        let mut all = Vec::new();
        let ranges = [starts, ends, documents.positions(), offsets].map(|list| {
            let first = all.len();
            all.extend(list);
            let range = first..all.len();
            all.resize(all.len().next_multiple_of(GRAIN), 0);
            range
        });
        let all = gpu.of(&all)?;
        let [starts, ends, positions, offsets] = ranges.map(|range| all.part(range));
        let longest = documents.iter().map(Document::len).max().unwrap_or(0);
        Ok(Self { starts: starts?, ends: ends?, positions: positions?, offsets: offsets?, longest })
    }

    /// Number of tokens in the row, padding included.
    pub fn tokens(&self) -> usize {
        self.starts.len()
    }

    /// Number of documents.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Tokens of the longest document, padding included.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// For every token the first token of its document.
    pub fn starts(&self) -> &Buffer<u32> {
        &self.starts
    }

    /// For every token one past the last token of its document.
    pub fn ends(&self) -> &Buffer<u32> {
        &self.ends
    }

    /// Position of every token inside its own document.
    pub fn positions(&self) -> &Buffer<u32> {
        &self.positions
    }

    /// Where each document begins, and behind the last of them the number of tokens: document `d` is
    /// `offsets[d]..offsets[d + 1]`.
    pub fn offsets(&self) -> &Buffer<u32> {
        &self.offsets
    }
}

#[cfg(all(test, feature = "emulation"))]
mod tests {
    use super::*;

    #[test]
    fn every_token_knows_its_document() {
        let documents = Documents::from_padded_lengths(&[(3, 2), (1, 1), (2, 2)]).unwrap();
        let documents = GpuDocuments::of(&Gpu::emulated(0), &documents).unwrap();
        assert_eq!((documents.tokens(), documents.count(), documents.longest()), (6, 3, 3));
        assert_eq!(documents.starts().download().unwrap(), [0, 0, 0, 3, 4, 4]);
        assert_eq!(documents.ends().download().unwrap(), [3, 3, 3, 4, 6, 6]);
        assert_eq!(documents.positions().download().unwrap(), [0, 1, 2, 0, 0, 1]);
        assert_eq!(documents.offsets().download().unwrap(), [0, 3, 4, 6]);
        for list in [documents.starts(), documents.ends(), documents.positions(), documents.offsets()] {
            assert_eq!(list.address() % 256, 0);
        }
    }
}
