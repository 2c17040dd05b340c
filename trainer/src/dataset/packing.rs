//! Which documents share a micro-batch.
//!
//! Packed, the documents of a micro-batch lie one after the other and nothing is padded; the boundaries go to the kernels,
//! so that packing changes the time a step takes and not its result. Unpacked, a micro-batch is rows of one length:
//! documents of about the same length are put together and padded to the longest of them.

use std::{cmp::Reverse, collections::BTreeSet};

use super::facts::Document;
use crate::{Error, Result};

/// How documents are put into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Most tokens of a micro-batch, padding included.
    pub capacity: u32,
    /// One after the other (`true`), or padded rows.
    pub packed: bool,
}

/// The documents of one micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bin {
    /// Indices of documents: the longest first, of two that are equally long the one with the lower index.
    pub documents: Vec<u32>,
    /// Tokens that every document is padded to; `None` where nothing is padded.
    pub padded_to: Option<u32>,
}

impl Packing {
    /// Puts the chosen documents into micro-batches, each of them into one. The result depends on which documents are
    /// chosen, not on their order.
    ///
    /// Packed, by best fit decreasing: the longest document first, each into the fullest micro-batch that still has room
    /// for it. That needs at most 11/9 of the fewest micro-batches that could do, plus four (Johnson and others, 1974), and
    /// takes `n log n` steps.
    pub fn bins(&self, documents: &[Document], chosen: &[u32]) -> Result<Vec<Bin>> {
        let mut order: Vec<(Reverse<u32>, u32)> =
            chosen.iter().map(|&index| (Reverse(documents[index as usize].tokens), index)).collect();
        order.sort_unstable();
        if let Some((Reverse(tokens), index)) = order.first().filter(|(tokens, _)| tokens.0 > self.capacity) {
            let line = documents[*index as usize].line;
            return Err(Error::Invalid(format!(
                "line {line}: the example has {tokens} tokens and a micro-batch holds {}; lower max_seq_length",
                self.capacity
            )));
        }
        Ok(if self.packed { best_fit(&order, self.capacity) } else { rows(&order, self.capacity) })
    }
}

/// Documents by falling length into the fullest bin with room for them, the oldest of those that are equally full.
fn best_fit(order: &[(Reverse<u32>, u32)], capacity: u32) -> Vec<Bin> {
    let mut bins: Vec<Bin> = Vec::new();
    // Free tokens and number of every bin that is not full.
    let mut free: BTreeSet<(u32, usize)> = BTreeSet::new();
    for &(Reverse(tokens), document) in order {
        let (room, bin) = free.range((tokens, 0)..).next().copied().unwrap_or((capacity, bins.len()));
        match bins.get_mut(bin) {
            Some(bin) => bin.documents.push(document),
            None => bins.push(Bin { documents: vec![document], padded_to: None }),
        }
        free.remove(&(room, bin));
        if room > tokens {
            free.insert((room - tokens, bin));
        }
    }
    bins
}

/// Documents by falling length into rows as long as the first of their bin, so many as fit.
fn rows(order: &[(Reverse<u32>, u32)], capacity: u32) -> Vec<Bin> {
    let mut bins: Vec<Bin> = Vec::new();
    for &(Reverse(tokens), document) in order {
        let has_room = |bin: &&mut Bin| {
            let row = u64::from(bin.padded_to.unwrap_or_default());
            row * (bin.documents.len() as u64 + 1) <= u64::from(capacity)
        };
        match bins.last_mut().filter(has_room) {
            Some(bin) => bin.documents.push(document),
            None => bins.push(Bin { documents: vec![document], padded_to: Some(tokens) }),
        }
    }
    bins
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn documents(lengths: &[u32]) -> Vec<Document> {
        let document = |(index, &tokens): (usize, &u32)| Document {
            line: index as u64 + 1,
            conversation: index as u64,
            offset: 0,
            tokens,
            targets: 1,
            whole_tokens: tokens,
            cut_turns: 0,
        };
        lengths.iter().enumerate().map(document).collect()
    }

    fn bins(lengths: &[u32], capacity: u32, packed: bool) -> Vec<Bin> {
        let chosen: Vec<u32> = (0..lengths.len() as u32).collect();
        Packing { capacity, packed }.bins(&documents(lengths), &chosen).unwrap()
    }

    fn contents(bins: &[Bin]) -> Vec<Vec<u32>> {
        bins.iter().map(|bin| bin.documents.clone()).collect()
    }

    #[test]
    fn each_document_goes_where_it_leaves_least_room() {
        // First fit would put the last one beside the fours.
        assert_eq!(contents(&bins(&[4, 4, 3, 3, 3, 1], 10, true)), [vec![0, 1], vec![2, 3, 4, 5]]);
        // A full bin takes nothing more, equally full ones are filled in turn.
        assert_eq!(contents(&bins(&[8, 4, 4, 4, 4], 8, true)), [vec![0], vec![1, 2], vec![3, 4]]);
        assert!(bins(&[], 8, true).is_empty());
    }

    #[test]
    fn rows_hold_documents_of_similar_length() {
        let padded = bins(&[5, 1, 4, 2, 5, 1], 10, false);
        assert_eq!(contents(&padded), [vec![0, 4], vec![2, 3], vec![1, 5]]);
        assert_eq!(padded.iter().map(|bin| bin.padded_to).collect::<Vec<_>>(), [Some(5), Some(4), Some(1)]);
        assert!(bins(&[], 8, false).is_empty());
    }

    #[test]
    fn a_document_that_fits_no_micro_batch_is_named() {
        for packed in [true, false] {
            let packing = Packing { capacity: 8, packed };
            let error = packing.bins(&documents(&[2, 9]), &[0, 1]).unwrap_err().to_string();
            assert!(error.contains("line 2: the example has 9 tokens and a micro-batch holds 8"), "{error}");
        }
    }

    /// Martello and Toth's L2: documents over half a bin need one each, those between `threshold` and half go into what
    /// these leave over and then fill bins of their own. No packing can do with less.
    fn fewest_possible(lengths: &[u32], capacity: u32) -> usize {
        let capacity = u64::from(capacity);
        let lengths: Vec<u64> = lengths.iter().map(|length| u64::from(*length)).collect();
        let bound = |threshold: u64| {
            let (mut alone, mut large, mut room, mut middle) = (0, 0, 0, 0);
            for &length in &lengths {
                match length {
                    _ if length > capacity - threshold => alone += 1,
                    _ if 2 * length > capacity => (large, room) = (large + 1, room + capacity - length),
                    _ if length >= threshold => middle += length,
                    _ => {}
                }
            }
            alone + large + u64::saturating_sub(middle, room).div_ceil(capacity)
        };
        (0..=capacity / 2).map(bound).max().unwrap_or_default() as usize
    }

    fn lengths() -> impl Strategy<Value = (u32, Vec<u32>)> {
        let capacity = prop_oneof![1u32..12, 12u32..300];
        capacity.prop_flat_map(|capacity| (Just(capacity), prop::collection::vec(1..=capacity, 0..150)))
    }

    proptest! {
        #[test]
        fn every_chosen_document_is_in_one_bin_once_and_no_bin_overflows(
            (capacity, lengths) in lengths(), packed: bool, every in 1usize..4
        ) {
            let documents = documents(&lengths);
            let chosen: Vec<u32> = (0..lengths.len() as u32).rev().step_by(every).collect();
            let bins = Packing { capacity, packed }.bins(&documents, &chosen).unwrap();
            let mut packed_documents = contents(&bins).concat();
            packed_documents.sort_unstable();
            let mut expected = chosen.clone();
            expected.sort_unstable();
            prop_assert_eq!(packed_documents, expected);
            for bin in &bins {
                let lengths: Vec<u32> = bin.documents.iter().map(|&i| documents[i as usize].tokens).collect();
                prop_assert!(lengths.is_sorted_by(|a, b| a >= b));
                prop_assert_eq!(bin.padded_to, (!packed).then_some(lengths[0]));
                let used = bin.padded_to.map_or(lengths.iter().sum(), |row| row * lengths.len() as u32);
                prop_assert!(used <= capacity, "{used} of {capacity}");
            }
        }

        #[test]
        fn the_order_of_the_chosen_documents_does_not_matter((capacity, lengths) in lengths(), packed: bool) {
            let documents = documents(&lengths);
            let mut chosen: Vec<u32> = (0..lengths.len() as u32).collect();
            let packing = Packing { capacity, packed };
            let forward = packing.bins(&documents, &chosen).unwrap();
            chosen.reverse();
            prop_assert_eq!(packing.bins(&documents, &chosen).unwrap(), forward);
        }

        /// `11/9 · optimum + 4`, and the optimum is at most 3/2 of the lower bound (asymptotically).
        #[test]
        fn few_bins_are_needed((capacity, lengths) in lengths()) {
            let used = bins(&lengths, capacity, true).len();
            let least = fewest_possible(&lengths, capacity);
            prop_assert!(used >= least, "{used} bins where {least} are needed");
            prop_assert!(18 * used <= 33 * least + 72, "{used} bins, at least {least} are needed");
        }
    }

    #[test]
    fn a_set_that_fills_its_bins_exactly_needs_no_more_than_eleven_ninths() {
        // The optimum is known: bins of 100 cut into pieces by a fixed rule.
        let mut random = super::super::random::Random::keyed(&[5]);
        for pieces in 2..8 {
            let mut lengths = Vec::new();
            for _ in 0..200 {
                let mut left = 100;
                for _ in 1..pieces {
                    let piece = 1 + random.below(left / 2) as u32;
                    lengths.push(piece);
                    left -= piece as usize;
                }
                lengths.push(left as u32);
            }
            let used = bins(&lengths, 100, true).len();
            assert!((200..=200 * 11 / 9 + 4).contains(&used), "{used} bins, 200 would do, {pieces} pieces each");
        }
    }

    #[test]
    fn a_whole_dataset_is_packed_at_once_in_no_time() {
        let mut random = super::super::random::Random::keyed(&[6]);
        let lengths: Vec<u32> = (0..200_000).map(|_| 1 + random.below(2048) as u32).collect();
        let bins = bins(&lengths, 4096, true);
        let tokens: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        assert!(tokens as f64 / (bins.len() as f64 * 4096.0) > 0.99);
    }
}
