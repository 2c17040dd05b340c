//! Dropout whose mask is a pure function of a key and an element's index, so that a recomputed forward pass and the
//! backward pass see the same mask without storing it.

use rayon::prelude::*;

/// Dropout with probability `probability`; every kept element is scaled by `1 / (1 - probability)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Chance of an element to be dropped, `0 <= probability < 1`.
    pub probability: f32,
    /// Names the mask: the run's seed, step, micro-batch and module mixed into one number (see [`Dropout::keyed`]).
    pub key: u64,
}

impl Dropout {
    /// Mixes any number of parts into a mask's key.
    pub fn keyed(probability: f32, parts: &[u64]) -> Self {
        let key = parts.iter().fold(SPLITMIX_STEP, |state, part| splitmix(state ^ splitmix(*part)));
        Self { probability, key }
    }

    /// The factor of element `index`: 0 or `1 / (1 - probability)`.
    #[inline]
    pub fn factor(&self, index: u64) -> f32 {
        if self.draw(index) < self.threshold() { 0.0 } else { self.scale() }
    }

    /// Multiplies `values`, which are the elements `first_index..` of the masked tensor, by their factors.
    pub fn apply(&self, values: &mut [f32], first_index: u64) {
        let (threshold, scale) = (self.threshold(), self.scale());
        for (offset, value) in values.iter_mut().enumerate() {
            let keep = self.draw(first_index + offset as u64) >= threshold;
            *value = if keep { *value * scale } else { 0.0 };
        }
    }

    /// [`Dropout::apply`] to a whole tensor, on all threads.
    pub(crate) fn apply_parallel(&self, values: &mut [f32]) {
        const SHARE: usize = 1 << 14;
        values.par_chunks_mut(SHARE).enumerate().for_each(|(index, part)| self.apply(part, (index * SHARE) as u64));
    }

    /// The factor of what is kept.
    #[inline]
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (1.0 - self.probability)
    }

    /// What is drawn below it is dropped.
    #[inline]
    pub(crate) fn threshold(&self) -> u32 {
        (f64::from(self.probability) * 4_294_967_296.0) as u32
    }

    // Two keyed rounds of a 32-bit finaliser; 32-bit arithmetic so that the loop above vectorises.
    #[inline]
    fn draw(&self, index: u64) -> u32 {
        let first = finalise((index as u32) ^ (self.key as u32));
        finalise(first.wrapping_add((self.key >> 32) as u32) ^ ((index >> 32) as u32))
    }
}

#[inline]
fn finalise(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// What splitmix64 adds to its state before each mix.
pub const SPLITMIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The splitmix64 step: a bijective mix of 64 bits.
pub fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(SPLITMIX_STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_asked_share_and_keeps_the_mean() {
        let dropout = Dropout::keyed(0.3, &[7, 1]);
        let mut values = vec![1.0f32; 200_000];
        dropout.apply(&mut values, 0);
        let dropped = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        assert!((dropped - 0.3).abs() < 0.005, "{dropped}");
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn the_mask_depends_on_the_key_and_the_index_only() {
        let (a, b) = (Dropout::keyed(0.5, &[1]), Dropout::keyed(0.5, &[2]));
        let mut whole = vec![1.0f32; 64];
        a.apply(&mut whole, 0);
        let mut tail = vec![1.0f32; 32];
        a.apply(&mut tail, 32);
        assert_eq!(whole[32..], tail[..]);
        assert!((0..64).all(|i| whole[i] == a.factor(i as u64)));
        let mut other = vec![1.0f32; 64];
        b.apply(&mut other, 0);
        assert_ne!(whole, other);
    }
}
