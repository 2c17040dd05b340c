//! How long the examples of a file are.

use serde::Serialize;

/// Smallest upper edge of a bucket.
const FIRST_EDGE: u32 = 32;

/// Lengths of examples in tokens, before anything is cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The longest.
    pub longest: u32,
    /// Half of the examples are no longer.
    pub median: u32,
    /// 95 of 100 examples are no longer.
    pub p95: u32,
    /// How many examples there are of which length, from the shortest to the longest, without gaps.
    pub buckets: Vec<Bucket>,
}

/// Examples of a range of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Shortest length of the bucket.
    pub from: u32,
    /// Longest length of the bucket.
    pub to: u32,
    /// Examples in it.
    pub examples: u64,
}

impl Lengths {
    /// Measures examples.
    pub fn of(lengths: impl IntoIterator<Item = u32>) -> Self {
        let mut lengths: Vec<u32> = lengths.into_iter().collect();
        lengths.sort_unstable();
        Self {
            longest: lengths.last().copied().unwrap_or_default(),
            median: quantile(&lengths, 50),
            p95: quantile(&lengths, 95),
            buckets: buckets(&lengths),
        }
    }
}

/// The smallest length that `percent` of the (ascending) lengths do not exceed.
fn quantile(lengths: &[u32], percent: usize) -> u32 {
    let rank = (lengths.len() * percent).div_ceil(100);
    lengths.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Upper edges: powers of two and, between two of them, one and a half times the lower: 32, 48, 64, 96, 128, …
fn edges() -> impl Iterator<Item = u32> {
    let pairs = std::iter::successors(Some(FIRST_EDGE), |edge| edge.checked_mul(2));
    pairs.flat_map(|edge| [edge, edge / 2 * 3]).chain([u32::MAX])
}

fn buckets(lengths: &[u32]) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let (mut from, mut rest) = (1, lengths);
    for to in edges() {
        if rest.is_empty() {
            break;
        }
        let inside = rest.partition_point(|&length| length <= to);
        if inside > 0 || !buckets.is_empty() {
            buckets.push(Bucket { from, to, examples: inside as u64 });
        }
        (from, rest) = (to.saturating_add(1), &rest[inside..]);
    }
    buckets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edges_ascend_to_the_largest_length() {
        let edges: Vec<u32> = edges().collect();
        assert_eq!(edges[..6], [32, 48, 64, 96, 128, 192]);
        assert_eq!(edges.last(), Some(&u32::MAX));
        assert!(edges.is_sorted_by(|a, b| a < b), "{edges:?}");
    }

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let lengths = Lengths::of([9, 1, 5, 3]);
        assert_eq!((lengths.median, lengths.p95, lengths.longest), (3, 9, 9));
        let lengths = Lengths::of(1..=100);
        assert_eq!((lengths.median, lengths.p95, lengths.longest), (50, 95, 100));
        assert_eq!(Lengths::of([7]), Lengths::of([7, 7]).tap_examples(1));
        assert_eq!(Lengths::of([]), Lengths::default());
    }

    impl Lengths {
        fn tap_examples(mut self, examples: u64) -> Self {
            self.buckets.iter_mut().for_each(|bucket| bucket.examples = examples);
            self
        }
    }

    #[test]
    fn buckets_begin_and_end_with_an_example_and_keep_gaps() {
        let lengths = Lengths::of([40, 48, 49, 130]);
        let shown: Vec<_> = lengths.buckets.iter().map(|bucket| (bucket.from, bucket.to, bucket.examples)).collect();
        assert_eq!(shown, [(33, 48, 2), (49, 64, 1), (65, 96, 0), (97, 128, 0), (129, 192, 1)]);
    }

    proptest! {
        #[test]
        fn every_length_is_counted_once(lengths in prop::collection::vec(prop_oneof![1u32..5000, 1u32..=u32::MAX], 0..80)) {
            let buckets = Lengths::of(lengths.iter().copied()).buckets;
            for bucket in &buckets {
                let inside = lengths.iter().filter(|length| (bucket.from..=bucket.to).contains(length)).count();
                prop_assert_eq!(bucket.examples, inside as u64);
            }
            prop_assert_eq!(buckets.iter().map(|bucket| bucket.examples).sum::<u64>(), lengths.len() as u64);
            prop_assert!(buckets.windows(2).all(|pair| pair[1].from == pair[0].to + 1));
        }
    }
}
