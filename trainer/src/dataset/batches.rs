//! In which order sequences are learnt, and how those of one optimiser step are packed into micro-batches.

use super::random::Random;
use crate::{
    Error, Result,
    batch::{MicroBatch, Sequence},
};

/// Optimiser steps of one pass over `count` sequences; the last step takes what is left.
pub fn steps_per_epoch(count: usize, batch_size: usize) -> usize {
    count.div_ceil(batch_size)
}

/// The sequences of every optimiser step of an epoch, by index: a shuffle that depends on `seed` and `epoch` only.
pub fn epoch_steps(count: usize, batch_size: usize, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    Random::keyed(&[seed, u64::from(epoch)]).shuffle(&mut order);
    order.chunks(batch_size).map(<[usize]>::to_vec).collect()
}

/// Packs the chosen sequences into micro-batches of at most `max_tokens` tokens, each sequence a document of its own.
///
/// First fit, longest first: fewest micro-batches that a simple rule finds, and the same ones every time.
pub fn micro_batches(sequences: &[Sequence], chosen: &[usize], max_tokens: usize) -> Result<Vec<MicroBatch>> {
    let mut longest_first = chosen.to_vec();
    longest_first.sort_by_key(|&index| std::cmp::Reverse(sequences[index].tokens.len()));
    let mut packs: Vec<(usize, Vec<Sequence>)> = Vec::new();
    for index in longest_first {
        let sequence = &sequences[index];
        let length = sequence.tokens.len();
        if length > max_tokens {
            return Err(Error::Invalid(format!(
                "sequence {index} has {length} tokens and a micro-batch holds {max_tokens}; lower max_seq_length"
            )));
        }
        match packs.iter_mut().find(|(used, _)| used + length <= max_tokens) {
            Some((used, pack)) => {
                *used += length;
                pack.push(sequence.clone());
            }
            None => packs.push((length, vec![sequence.clone()])),
        }
    }
    packs.iter().map(|(_, pack)| MicroBatch::from_sequences(pack)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(length: usize) -> Sequence {
        Sequence { tokens: vec![length as u32; length], labels: vec![length as i64; length], valid: length }
    }

    #[test]
    fn an_epoch_holds_every_sequence_once_in_an_order_of_its_own() {
        let steps = epoch_steps(10, 4, 3, 1);
        assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert_eq!(steps.len(), steps_per_epoch(10, 4));
        let mut all = steps.concat();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!(steps, epoch_steps(10, 4, 3, 1));
        assert_ne!(steps, epoch_steps(10, 4, 3, 2));
        assert_ne!(steps, epoch_steps(10, 4, 4, 1));
    }

    #[test]
    fn packs_are_full_ordered_and_keep_documents_apart() {
        let sequences: Vec<Sequence> = [3, 6, 4, 2].map(sequence).to_vec();
        let batches = micro_batches(&sequences, &[0, 1, 2, 3], 8).unwrap();
        let lengths = |batch: &MicroBatch| batch.documents.iter().map(|document| document.len()).collect::<Vec<_>>();
        assert_eq!(batches.iter().map(lengths).collect::<Vec<_>>(), [vec![6, 2], vec![4, 3]]);
        assert_eq!(batches[0].tokens, [6, 6, 6, 6, 6, 6, 2, 2]);
        assert_eq!(batches.iter().map(MicroBatch::target_count).sum::<usize>(), 15 - 4);
        // One sequence each where there is room for no more.
        assert_eq!(micro_batches(&sequences, &[0, 2], 4).unwrap().len(), 2);
    }

    #[test]
    fn a_sequence_that_fits_no_micro_batch_is_named() {
        let error = micro_batches(&[sequence(2), sequence(9)], &[0, 1], 8).unwrap_err().to_string();
        assert!(error.contains("sequence 1 has 9 tokens and a micro-batch holds 8"), "{error}");
    }
}
