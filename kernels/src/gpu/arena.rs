//! One large piece of memory, given out in parts: a card is asked for memory once, at the start, and never again.
//!
//! A part is taken from the smallest gap that it fits into (the first of several), so the same requests get the same
//! addresses, run after run. It knows numbers only: whoever plans a run makes the same requests of an arena without memory.

use std::collections::BTreeMap;

/// Parts begin at multiples of this.
const GRAIN: u64 = 256;

/// Which parts of `0..size` are free.
#[derive(Debug)]
pub struct Arena {
    size: u64,
    /// Where a gap begins, and how long it is. No two of them touch.
    gaps: BTreeMap<u64, u64>,
    used: u64,
    peak: u64,
}

// === impl Arena ===

impl Arena {
    /// All of so many bytes is free.
    pub fn new(size: u64) -> Self {
        let size = size / GRAIN * GRAIN;
        Self { size, gaps: BTreeMap::from([(0, size)]), used: 0, peak: 0 }
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The most that was taken at any time, or since [`Arena::forget_peak`].
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Looks for the most from now on.
    pub fn forget_peak(&mut self) {
        self.peak = self.used;
    }

    /// The longest part that could be had.
    pub fn longest_gap(&self) -> u64 {
        self.gaps.values().copied().max().unwrap_or(0)
    }

    /// All there is, free or not.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where so many bytes are free; nothing where they are not.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = rounded(bytes);
        let fits = self.gaps.iter().filter(|(_, length)| **length >= bytes);
        let (&at, &length) = fits.min_by_key(|(_, length)| **length)?;
        self.gaps.remove(&at);
        if length > bytes {
            self.gaps.insert(at + bytes, length - bytes);
        }
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        Some(at)
    }

    /// Frees what was taken.
    pub fn give(&mut self, at: u64, bytes: u64) {
        let bytes = rounded(bytes);
        self.used -= bytes;
        let (mut start, mut end) = (at, at + bytes);
        if let Some((&before, &length)) = self.gaps.range(..at).next_back()
            && before + length == at
        {
            self.gaps.remove(&before);
            start = before;
        }
        if let Some(length) = self.gaps.remove(&end) {
            end += length;
        }
        self.gaps.insert(start, end - start);
    }
}

/// What so many bytes take. Nothing takes a part too, so that every address is of one thing only.
pub const fn rounded(bytes: u64) -> u64 {
    if bytes == 0 { GRAIN } else { bytes.div_ceil(GRAIN) * GRAIN }
}

#[cfg(test)]
mod tests {
    use super::Arena;
    use crate::gpu_check::Random;

    #[test]
    fn parts_never_overlap_and_all_comes_back() {
        let mut arena = Arena::new(1 << 19);
        let (mut taken, mut refused, mut most) = (Vec::<(u64, u64)>::new(), 0, 0);
        for pair in Random::new(5).values(4000).chunks(2) {
            let bytes = (pair[0].abs() * 30_000.0) as u64;
            if pair[1] > -0.2 || taken.is_empty() {
                match arena.take(bytes) {
                    Some(at) => taken.push((at, bytes)),
                    None => refused += 1,
                }
            } else {
                let (at, bytes) = taken.swap_remove((pair[0].abs() * taken.len() as f64) as usize);
                arena.give(at, bytes);
            }
            most = most.max(arena.used());
            let mut sorted = taken.clone();
            sorted.sort();
            assert!(sorted.windows(2).all(|two| two[0].0 + two[0].1.max(1) <= two[1].0), "{sorted:?}");
            assert!(sorted.iter().all(|(at, bytes)| at % 256 == 0 && at + bytes <= 1 << 19));
        }
        assert!(refused > 0, "it was never full");
        assert_eq!(arena.peak(), most);
        taken.drain(..).for_each(|(at, bytes)| arena.give(at, bytes));
        arena.forget_peak();
        assert_eq!((arena.used(), arena.peak(), arena.longest_gap()), (0, 0, arena.size()));
    }

    #[test]
    fn the_smallest_gap_that_fits_is_taken() {
        let mut arena = Arena::new(256 * 10);
        let parts: Vec<_> = [2, 1, 3, 1, 1].iter().map(|grains| arena.take(256 * grains).unwrap()).collect();
        assert_eq!(parts, [0, 512, 768, 1536, 1792]);
        arena.give(parts[0], 512);
        arena.give(parts[2], 768);
        assert_eq!(arena.take(400), Some(0), "two grains lie in the gap of two, though one of three is there");
        assert_eq!(arena.take(0), Some(2048), "nothing takes one, behind the others: that gap is smaller");
        assert_eq!(arena.take(256 * 4), None);
        assert_eq!(arena.longest_gap(), 768);
    }
}
