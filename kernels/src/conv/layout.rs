//! How the fused projection of a linear-attention mixer is laid out in memory.

use std::ops::Range;

use crate::{Error, Result};

/// Head counts and sizes of a gated delta net. Its projection `qkvz` is grouped by key head; inside a group stand
/// `q (key_dim) | k (key_dim) | v (r · value_dim) | z (r · value_dim)` with `r = value_heads / key_heads`, and value
/// head `h` is number `h % r` of group `h / r`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadGroups {
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v and z; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Size of one head of q or k.
    pub key_dim: usize,
    /// Size of one head of v or z.
    pub value_dim: usize,
}

/// A run of channels that is contiguous both in the projection and among the convolved channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First column in the projection.
    pub(crate) source: usize,
    /// First convolved channel.
    pub(crate) channel: usize,
    /// Number of channels.
    pub(crate) length: usize,
}

// === impl HeadGroups ===

impl HeadGroups {
    /// Refuses sizes that are zero or do not divide.
    pub fn check(&self) -> Result<()> {
        let sizes = [self.key_heads, self.value_heads, self.key_dim, self.value_dim];
        if sizes.contains(&0) || !self.value_heads.is_multiple_of(self.key_heads) {
            return Err(Error::invalid(
                "head groups",
                format!("sizes must not be zero and key_heads must divide value_heads, found {self:?}"),
            ));
        }
        Ok(())
    }

    /// Value heads per key head, `r`.
    pub fn values_per_key(&self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Width of all heads of q (or k).
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Width of all heads of v (or z).
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Width of one key head's group in the projection.
    pub fn group_width(&self) -> usize {
        2 * self.key_dim + 2 * self.values_per_key() * self.value_dim
    }

    /// Width of the whole projection.
    pub fn projection_width(&self) -> usize {
        self.key_heads * self.group_width()
    }

    /// Number of convolved channels, in the order `q | k | v`, all heads of each.
    pub fn convolved_width(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Where the projection holds z of a value head.
    #[inline]
    pub fn gate_range(&self, value_head: usize) -> Range<usize> {
        let r = self.values_per_key();
        let (group, member) = (value_head / r, value_head % r);
        let start = group * self.group_width() + 2 * self.key_dim + (r + member) * self.value_dim;
        start..start + self.value_dim
    }

    /// The convolved channels: q, k and v of every group.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        let values = self.values_per_key() * self.value_dim;
        (0..self.key_heads)
            .flat_map(|group| {
                let source = group * self.group_width();
                let key = group * self.key_dim;
                [
                    Segment { source, channel: key, length: self.key_dim },
                    Segment { source: source + self.key_dim, channel: self.key_width() + key, length: self.key_dim },
                    Segment {
                        source: source + 2 * self.key_dim,
                        channel: 2 * self.key_width() + group * values,
                        length: values,
                    },
                ]
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_gates_cover_the_projection_once() {
        let groups = HeadGroups { key_heads: 3, value_heads: 6, key_dim: 4, value_dim: 5 };
        groups.check().unwrap();
        let mut columns = vec![0; groups.projection_width()];
        let mut channels = vec![0; groups.convolved_width()];
        for segment in groups.segments() {
            columns[segment.source..segment.source + segment.length].iter_mut().for_each(|c| *c += 1);
            channels[segment.channel..segment.channel + segment.length].iter_mut().for_each(|c| *c += 1);
        }
        for head in 0..6 {
            columns[groups.gate_range(head)].iter_mut().for_each(|c| *c += 1);
        }
        assert!(columns.iter().chain(&channels).all(|&c| c == 1));
        // Group 1 starts at column 28; its z begins after q, k (8) and v (10); value head 3 is its second member.
        assert_eq!(groups.gate_range(3), 51..56);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(HeadGroups { key_heads: 2, value_heads: 3, key_dim: 4, value_dim: 4 }.check().is_err());
        assert!(HeadGroups { key_heads: 0, value_heads: 0, key_dim: 4, value_dim: 4 }.check().is_err());
    }
}
