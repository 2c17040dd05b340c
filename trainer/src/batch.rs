//! One micro-batch: packed tokens, their targets and the documents they belong to.

use brightrun_kernels::Documents;

use crate::{Error, Result};

/// A label that is not trained on, as everywhere in the field.
pub const IGNORED: i64 = -100;

/// Tokens of one or more documents, one after the other, with the target of every position.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// `targets[t]` is what position `t` should predict (the label of `t + 1` in the same document), or `None`.
    pub targets: Vec<Option<u32>>,
    /// Where documents begin and end.
    pub documents: Documents,
}

/// One document: ids and unshifted labels ([`IGNORED`] where nothing is to be learnt), as the platform's data has them.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Token ids, padding included.
    pub tokens: Vec<u32>,
    /// One label per token.
    pub labels: Vec<i64>,
    /// Number of real tokens; the rest is right padding.
    pub valid: usize,
}

impl MicroBatch {
    /// Puts sequences one after the other; labels are shifted inside each document, never across.
    pub fn from_sequences(sequences: &[Sequence]) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut targets = Vec::new();
        let mut lengths = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.tokens.len() != sequence.labels.len() {
                return Err(Error::Invalid(format!(
                    "sequence {index} has {} tokens and {} labels; there must be one label per token",
                    sequence.tokens.len(),
                    sequence.labels.len()
                )));
            }
            lengths.push((sequence.tokens.len(), sequence.valid));
            tokens.extend_from_slice(&sequence.tokens);
            for label in sequence.labels.iter().skip(1).chain([&IGNORED]) {
                targets.push(match *label {
                    IGNORED => None,
                    id => Some(u32::try_from(id).map_err(|_| {
                        Error::Invalid(format!(
                            "sequence {index} has the label {id}; labels are token ids or {IGNORED}"
                        ))
                    })?),
                });
            }
        }
        Ok(Self { tokens, targets, documents: Documents::from_padded_lengths(&lengths)? })
    }

    /// Number of positions that have a target.
    pub fn target_count(&self) -> usize {
        self.targets.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[u32], labels: &[i64]) -> Sequence {
        Sequence { tokens: tokens.to_vec(), labels: labels.to_vec(), valid: tokens.len() }
    }

    #[test]
    fn labels_are_shifted_inside_each_document_only() {
        let batch =
            MicroBatch::from_sequences(&[sequence(&[1, 2, 3], &[-100, 2, 3]), sequence(&[4, 5], &[4, 5])]).unwrap();
        assert_eq!(batch.targets, [Some(2), Some(3), None, Some(5), None]);
        assert_eq!(batch.target_count(), 3);
    }

    #[test]
    fn a_label_that_is_no_token_is_refused() {
        assert!(MicroBatch::from_sequences(&[sequence(&[1, 2], &[0, -7])]).is_err());
        assert!(MicroBatch::from_sequences(&[sequence(&[1, 2], &[0])]).is_err());
    }
}
