//! Uniform numbers that are a function of a key and a place: noise on embeddings, and weights for benchmarks.
//!
//! ```text
//! bits      = splitmix(key ^ splitmix(place))
//! uniform   = ((bits >> 40) + 0.5) / 2²³ - 1        24 bits, between two of them: never ±1, never 0
//! ```

mod gpu;

pub use gpu::{add_rows, random_bytes, uniform_bf16};

use crate::dropout::splitmix;

/// A number in `(-1, 1)`.
#[inline]
pub fn uniform(key: u64, place: u64) -> f32 {
    let bits = splitmix(key ^ splitmix(place)) >> 40;
    (bits as f32 + 0.5) / (1u32 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn numbers_fill_their_range_and_depend_on_key_and_place() {
        let values: Vec<f32> = (0..10_000).map(|place| uniform(3, place)).collect();
        let mean = values.iter().sum::<f32>() / 1e4;
        let square = values.iter().map(|value| value * value).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.02 && (square - 1.0 / 3.0).abs() < 0.01, "{mean} {square}");
        assert!(values.iter().all(|value| value.abs() < 1.0 && *value != 0.0));
        assert_ne!(uniform(3, 7), uniform(4, 7));
        assert_ne!(uniform(3, 7), uniform(3, 8));
    }
}
