//! Which conversations are kept for validation: decided by their ids and the seed, never by their place in the file, and
//! never so that two parts of one conversation end up on both sides.

use std::collections::HashSet;

use super::{
    format::Conversation,
    random::{Random, hash},
};

/// Training and validation conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To learn from, in the file's order.
    pub training: Vec<Conversation>,
    /// To measure with, in the file's order.
    pub validation: Vec<Conversation>,
}

/// Keeps about `share` of the conversation ids (at least one of them where `share` is not 0, and never all) for validation.
pub fn split(conversations: Vec<Conversation>, share: f64, seed: u64) -> Split {
    let ids: HashSet<&str> = conversations.iter().map(|conversation| conversation.id.as_str()).collect();
    let mut ranked: Vec<(u64, &str)> =
        ids.into_iter().map(|id| (Random::keyed(&[seed, hash(id.as_bytes())]).bits(), id)).collect();
    ranked.sort_unstable();
    let kept = match (share * ranked.len() as f64).round() as usize {
        _ if share <= 0.0 => 0,
        count => count.clamp(1, ranked.len().max(1)).min(ranked.len().saturating_sub(1)),
    };
    let kept: HashSet<String> = ranked[..kept].iter().map(|(_, id)| (*id).to_owned()).collect();
    let (validation, training) = conversations.into_iter().partition(|conversation| kept.contains(&conversation.id));
    Split { training, validation }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversations(count: usize) -> Vec<Conversation> {
        // Two lines for each id.
        (0..count * 2).map(|i| Conversation { id: format!("c{}", i / 2), line: i + 1, turns: vec![] }).collect()
    }

    fn ids(list: &[Conversation]) -> HashSet<&str> {
        list.iter().map(|conversation| conversation.id.as_str()).collect()
    }

    #[test]
    fn no_conversation_is_on_both_sides_and_the_order_of_lines_does_not_matter() {
        let forward = split(conversations(50), 0.2, 7);
        assert_eq!(ids(&forward.validation).len(), 10);
        assert_eq!(forward.validation.len(), 20);
        assert!(ids(&forward.validation).is_disjoint(&ids(&forward.training)));
        let backward = split(conversations(50).into_iter().rev().collect(), 0.2, 7);
        assert_eq!(ids(&forward.validation), ids(&backward.validation));
        assert_ne!(ids(&forward.validation), ids(&split(conversations(50), 0.2, 8).validation));
    }

    #[test]
    fn small_sets_keep_something_on_both_sides() {
        let sizes = |count, share| {
            let split = split(conversations(count), share, 1);
            (ids(&split.training).len(), ids(&split.validation).len())
        };
        assert_eq!(sizes(2, 0.01), (1, 1));
        assert_eq!(sizes(2, 1.0), (1, 1));
        assert_eq!(sizes(1, 0.5), (1, 0));
        assert_eq!(sizes(5, 0.0), (5, 0));
    }
}
