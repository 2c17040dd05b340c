//! Where documents begin and end in a row of packed tokens. Every op that mixes positions takes this, so that no
//! document can see another through attention, the convolution or the delta-rule state.

mod gpu;

use std::sync::Arc;

pub use gpu::GpuDocuments;

use crate::{Error, Result};

/// One document in a packed row: tokens `start..end`, of which `start..valid_end` are real and the rest padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// First token.
    pub start: usize,
    /// One past the last token, padding included.
    pub end: usize,
    /// One past the last real token.
    pub valid_end: usize,
}

impl Document {
    /// Number of tokens, padding included.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Documents are never empty; here for the usual pair with [`Document::len`].
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// The documents of one packed row, in order and without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    list: Arc<[Document]>,
}

impl Documents {
    /// Documents of these lengths, one after the other, without padding.
    pub fn from_lengths(lengths: &[usize]) -> Result<Self> {
        let pairs: Vec<(usize, usize)> = lengths.iter().map(|&n| (n, n)).collect();
        Self::from_padded_lengths(&pairs)
    }

    /// Documents of `(length with right padding, length without)`.
    pub fn from_padded_lengths(lengths: &[(usize, usize)]) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::invalid("documents", "a batch needs at least one document"));
        }
        let mut start = 0usize;
        let mut list = Vec::with_capacity(lengths.len());
        for (index, &(length, valid)) in lengths.iter().enumerate() {
            if length == 0 || valid == 0 || valid > length {
                return Err(Error::invalid(
                    "documents",
                    format!("document {index} has {valid} tokens in {length} places; both must be at least 1"),
                ));
            }
            let end = start.checked_add(length).ok_or_else(|| Error::invalid("documents", "the lengths overflow"))?;
            list.push(Document { start, end, valid_end: start + valid });
            start = end;
        }
        Ok(Self { list: list.into() })
    }

    /// All documents in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Document> {
        self.list.iter()
    }

    /// All documents in order, as a slice.
    pub fn as_slice(&self) -> &[Document] {
        &self.list
    }

    /// Number of tokens in the row, padding included.
    pub fn tokens(&self) -> usize {
        self.list.last().map_or(0, |d| d.end)
    }

    /// Whether any document carries padding.
    pub fn has_padding(&self) -> bool {
        self.list.iter().any(|d| d.valid_end < d.end)
    }

    /// Position of every token inside its own document.
    pub fn positions(&self) -> Vec<u32> {
        self.list.iter().flat_map(|d| 0..d.len() as u32).collect()
    }

    /// 1 for real tokens, 0 for padding.
    pub fn validity(&self) -> Vec<f32> {
        self.list.iter().flat_map(|d| (d.start..d.end).map(|t| if t < d.valid_end { 1.0 } else { 0.0 })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_and_padding_is_marked() {
        let documents = Documents::from_padded_lengths(&[(3, 2), (2, 2)]).unwrap();
        assert_eq!(documents.positions(), [0, 1, 2, 0, 1]);
        assert_eq!(documents.validity(), [1.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!(documents.tokens(), 5);
        assert!(documents.has_padding());
    }

    #[test]
    fn empty_or_impossible_documents_are_refused() {
        assert!(Documents::from_lengths(&[]).is_err());
        assert!(Documents::from_lengths(&[3, 0]).is_err());
        assert!(Documents::from_padded_lengths(&[(2, 3)]).is_err());
        assert!(Documents::from_lengths(&[usize::MAX, 2]).is_err());
    }
}
