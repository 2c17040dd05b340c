//! A small generator whose numbers are the same on every machine and in every version.

use brightrun_kernels::dropout::{SPLITMIX_STEP, splitmix};

/// splitmix64: a counter pushed through a bijective mix.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// A generator for one purpose, named by any number of parts.
    pub(crate) fn keyed(parts: &[u64]) -> Self {
        let mut random = Self { state: 0 };
        for part in parts {
            random.state ^= *part;
            random.state = random.bits();
        }
        random
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        let bits = splitmix(self.state);
        self.state = self.state.wrapping_add(SPLITMIX_STEP);
        bits
    }

    /// A number in `0..bound` (`bound` above 0), by the high half of a 128-bit product.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// FNV-1a, for keys out of names.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // First outputs for seed 0, as in the reference implementation by Sebastiano Vigna.
        let mut random = Random { state: 0 };
        assert_eq!([random.bits(), random.bits()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn numbers_below_a_bound_are_even() {
        let mut random = Random::keyed(&[1]);
        let mut counts = [0usize; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn keys_differ_in_every_part() {
        let first = |parts: &[u64]| Random::keyed(parts).bits();
        assert_ne!(first(&[1, 2]), first(&[2, 1]));
        assert_ne!(first(&[1, 2]), first(&[1, 3]));
        // The published value for "a".
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert!((0.0..1.0).contains(&Random::keyed(&[9]).unit()));
    }
}
