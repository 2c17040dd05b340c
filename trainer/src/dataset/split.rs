//! Which conversations are kept for validation.
//!
//! The side of a conversation is decided by its id, the seed and the set of conversations; never by its place in the file
//! or by how many examples it has, and never so that two examples of one conversation end up on both sides. Conversations
//! are ranked by a hash of seed and id, and the first so many of that ranking are kept. So:
//!
//! * lines may be reordered, and examples added to known conversations, without moving any conversation;
//! * one conversation more, or one less, moves at most one of the others: the one at the edge of the ranking, and only
//!   where rounding or the cap make the edge pass over it.

use std::collections::HashSet;

use super::{facts::Document, random::Random};

/// So many conversations are kept for validation at most: more of them cost time at every evaluation and change its mean
/// very little.
pub const MOST_VALIDATION_CONVERSATIONS: usize = 200;

/// Training and validation documents, by index and ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// To learn from.
    pub training: Vec<u32>,
    /// To measure with.
    pub validation: Vec<u32>,
}

/// Keeps about `share` of the conversations for validation: none where `share` is 0, else at least one, at most `most` and
/// never all of them. A single conversation is learnt from.
pub fn split(documents: &[Document], share: f64, most: usize, seed: u64) -> Split {
    let conversations: HashSet<u64> = documents.iter().map(|document| document.conversation).collect();
    let rank = |conversation| (Random::keyed(&[seed, conversation]).bits(), conversation);
    let mut ranked: Vec<(u64, u64)> = conversations.into_iter().map(rank).collect();
    ranked.sort_unstable();
    let kept = validation_conversations(ranked.len(), share, most);
    let kept: HashSet<u64> = ranked[..kept].iter().map(|(_, conversation)| *conversation).collect();
    let indices = 0..documents.len() as u32;
    let (validation, training) = indices.partition(|&index| kept.contains(&documents[index as usize].conversation));
    Split { training, validation }
}

/// How many of `count` conversations are kept for validation.
fn validation_conversations(count: usize, share: f64, most: usize) -> usize {
    if share <= 0.0 || count < 2 {
        return 0;
    }
    ((share * count as f64).round() as usize).clamp(1, count - 1).min(most)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn document(conversation: u64) -> Document {
        Document { line: 1, conversation, offset: 0, tokens: 4, targets: 2, whole_tokens: 4, cut_turns: 0 }
    }

    /// Two documents for each conversation.
    fn documents(conversations: impl IntoIterator<Item = u64>) -> Vec<Document> {
        conversations.into_iter().flat_map(|conversation| [document(conversation); 2]).collect()
    }

    /// Conversations of both sides: training, validation.
    fn sides(documents: &[Document], split: &Split) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let of = |side: &[u32]| side.iter().map(|&index| documents[index as usize].conversation).collect();
        (of(&split.training), of(&split.validation))
    }

    #[test]
    fn small_sets_keep_something_on_both_sides_and_large_ones_no_more_than_the_cap() {
        let sizes = |count, share| {
            let documents = documents(0..count);
            let split = split(&documents, share, MOST_VALIDATION_CONVERSATIONS, 1);
            let (training, validation) = sides(&documents, &split);
            (training.len(), validation.len())
        };
        assert_eq!(sizes(2, 0.01), (1, 1));
        assert_eq!(sizes(2, 1.0), (1, 1));
        assert_eq!(sizes(1, 0.5), (1, 0));
        assert_eq!(sizes(0, 0.5), (0, 0));
        assert_eq!(sizes(5, 0.0), (5, 0));
        assert_eq!(sizes(50, 0.2), (40, 10));
        assert_eq!(sizes(3000, 0.1), (2800, 200));
    }

    #[test]
    fn the_seed_decides() {
        let documents = documents(0..50);
        let of = |seed| split(&documents, 0.2, 200, seed);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7).validation, of(8).validation);
    }

    fn some_conversations() -> impl Strategy<Value = Vec<u64>> {
        // Ids from a small range repeat, those of the whole range do not.
        prop::collection::vec(prop_oneof![0u64..40, any::<u64>()], 0..120)
    }

    proptest! {
        #[test]
        fn every_document_is_on_one_side_and_conversations_stay_together(
            ids in some_conversations(), share in 0.0f64..1.0, most in 1usize..30, seed: u64
        ) {
            let documents: Vec<Document> = ids.iter().copied().map(document).collect();
            let split = split(&documents, share, most, seed);
            prop_assert!(split.training.is_sorted() && split.validation.is_sorted());
            let mut all = [split.training.clone(), split.validation.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..documents.len() as u32).collect::<Vec<_>>());
            let (training, validation) = sides(&documents, &split);
            prop_assert!(training.is_disjoint(&validation));
            prop_assert!(validation.len() <= most);
            let count = training.len() + validation.len();
            prop_assert_eq!(!validation.is_empty(), share > 0.0 && count > 1);
            prop_assert_eq!(training.is_empty(), count == 0);
        }

        #[test]
        fn neither_order_nor_more_examples_of_a_conversation_move_it(
            mut ids in some_conversations(), share in 0.0f64..0.6, seed: u64
        ) {
            let before: Vec<Document> = ids.iter().copied().map(document).collect();
            let expected = sides(&before, &split(&before, share, 20, seed));
            ids.extend(ids.clone().iter().step_by(3));
            Random::keyed(&[seed]).shuffle(&mut ids);
            let after: Vec<Document> = ids.iter().copied().map(document).collect();
            prop_assert_eq!(sides(&after, &split(&after, share, 20, seed)), expected);
        }

        #[test]
        fn one_more_conversation_moves_at_most_one_other(
            ids in some_conversations(), newcomer: u64, share in 0.0f64..0.6, most in 1usize..30, seed: u64
        ) {
            prop_assume!(!ids.contains(&newcomer));
            let before: Vec<Document> = ids.iter().copied().map(document).collect();
            let after: Vec<Document> = ids.iter().copied().chain([newcomer]).map(document).collect();
            let (_, mut kept) = sides(&after, &split(&after, share, most, seed));
            kept.remove(&newcomer);
            let (_, kept_before) = sides(&before, &split(&before, share, most, seed));
            prop_assert!(kept.symmetric_difference(&kept_before).count() <= 1);
        }
    }
}
