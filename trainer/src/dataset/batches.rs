//! In which order documents are learnt, and how those of one optimiser step become micro-batches.

use super::{packing::Bin, random::Random};
use crate::{
    Result,
    batch::{IGNORED, MicroBatch, Sequence},
};

/// The token that padding consists of. Every vocabulary has it, and nobody looks at it.
const PADDING: u32 = 0;

/// Optimiser steps of one pass over `count` documents; the last step takes what is left.
pub fn steps_per_epoch(count: usize, batch_size: usize) -> usize {
    count.div_ceil(batch_size)
}

/// The documents of every optimiser step of an epoch: a shuffle that depends on `seed` and `epoch` only.
pub fn epoch_steps(documents: &[u32], batch_size: usize, seed: u64, epoch: u32) -> Vec<Vec<u32>> {
    let mut order = documents.to_vec();
    Random::keyed(&[seed, u64::from(epoch)]).shuffle(&mut order);
    order.chunks(batch_size).map(<[u32]>::to_vec).collect()
}

/// Reads the documents of a bin and puts them into one micro-batch.
pub fn micro_batch(bin: &Bin, read: impl Fn(u32) -> Result<Sequence>) -> Result<MicroBatch> {
    let row = bin.padded_to.unwrap_or_default() as usize;
    let padded = |index: &u32| {
        let mut sequence = read(*index)?;
        let length = sequence.tokens.len().max(row);
        sequence.tokens.resize(length, PADDING);
        sequence.labels.resize(length, IGNORED);
        Ok(sequence)
    };
    let sequences: Vec<Sequence> = bin.documents.iter().map(padded).collect::<Result<_>>()?;
    MicroBatch::from_sequences(&sequences)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// A document whose tokens all say how long it is.
    fn sequence(length: u32) -> Sequence {
        Sequence {
            tokens: vec![length; length as usize],
            labels: vec![i64::from(length); length as usize],
            valid: length as usize,
        }
    }

    #[test]
    fn an_epoch_holds_every_document_once_in_an_order_of_its_own() {
        let documents: Vec<u32> = (0..30).step_by(3).collect();
        let steps = epoch_steps(&documents, 4, 3, 1);
        assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert_eq!(steps.len(), steps_per_epoch(10, 4));
        let mut all = steps.concat();
        all.sort_unstable();
        assert_eq!(all, documents);
        assert_eq!(steps, epoch_steps(&documents, 4, 3, 1));
        assert_ne!(steps, epoch_steps(&documents, 4, 3, 2));
        assert_ne!(steps, epoch_steps(&documents, 4, 4, 1));
    }

    #[test]
    fn packed_documents_keep_their_tokens_order_and_boundaries() {
        let lengths = [3, 6, 4, 2];
        let read = |index: u32| Ok(sequence(lengths[index as usize]));
        let batch = micro_batch(&Bin { documents: vec![1, 3], padded_to: None }, read).unwrap();
        assert_eq!(batch.tokens, [6, 6, 6, 6, 6, 6, 2, 2]);
        assert_eq!(batch.documents.iter().map(|document| document.len()).collect::<Vec<_>>(), [6, 2]);
        assert_eq!(batch.target_count(), 5 + 1);
    }

    #[test]
    fn rows_are_padded_with_what_nobody_learns() {
        let read = |index: u32| Ok(sequence([4, 2][index as usize]));
        let batch = micro_batch(&Bin { documents: vec![0, 1], padded_to: Some(4) }, read).unwrap();
        assert_eq!(batch.tokens, [4, 4, 4, 4, 2, 2, 0, 0]);
        assert_eq!(batch.documents.validity(), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(batch.target_count(), 3 + 1);
    }

    #[test]
    fn a_document_that_cannot_be_read_ends_the_batch() {
        let read = |_| Err(Error::Invalid("damaged".into()));
        let error = micro_batch(&Bin { documents: vec![0], padded_to: None }, read).unwrap_err();
        assert_eq!(error.to_string(), "damaged");
    }
}
