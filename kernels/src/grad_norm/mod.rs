//! The norm of all gradients together, and the factor that clips it.
//!
//! ```text
//! total  = sqrt( Σ over all tensors and values of g² )
//! factor = min(1, max_norm / (total + 1e-6))
//! ```
//!
//! as `torch.nn.utils.clip_grad_norm_`. Sums are `f64` and always made in the same order, whatever the number of
//! threads, so that a run repeats to the bit.

mod cpu;
mod gpu;
pub(crate) mod reference;
pub(crate) mod units;

pub use gpu::GpuGradientNorm;

/// Keeps the factor of a vanishing norm finite (PyTorch's constant).
const EPSILON: f64 = 1e-6;

/// Σ v², in an order that depends on the length alone. A value that is not finite makes the result so.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    cpu::sum_of_squares(values)
}

/// The factor to multiply all gradients with. When the norm is not finite the factor is NaN: the caller has to decide
/// what becomes of such a step, and [`crate::adamw::step`] refuses it.
pub fn clip_factor(total_norm: f64, max_norm: f64) -> f32 {
    if !total_norm.is_finite() {
        return f32::NAN;
    }
    (max_norm / (total_norm + EPSILON)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fast_math::Level;

    fn values(count: usize) -> Vec<f32> {
        (0..count as u64).map(|i| ((i * 2_654_435_761 % 1_000_003) as f32 - 5e5) * 1e-6).collect()
    }

    #[test]
    fn the_sum_follows_the_reference() {
        for count in (0..70).chain([1000, 65_535, 65_536, 65_537, 300_001]) {
            let values = values(count);
            let (ours, expected) = (sum_of_squares(&values), reference::sum_of_squares(&values));
            assert!((ours - expected).abs() <= 1e-12 * expected, "{count}: {ours} {expected}");
            for level in Level::available() {
                assert_eq!(cpu::sum_of_squares_at(level, &values).to_bits(), ours.to_bits(), "{count} at {level:?}");
            }
        }
    }

    #[test]
    fn the_sum_does_not_depend_on_the_threads() {
        let values = values(1_000_000);
        let sums = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_of_squares(&values).to_bits())
        });
        assert!(sums.iter().all(|sum| *sum == sums[0]));
    }

    #[test]
    fn large_and_broken_values_show() {
        assert_eq!(sum_of_squares(&[3e38; 4]), 4.0 * f64::from(3e38f32).powi(2));
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = values(200_000);
            values[150_000] = bad;
            assert!(!sum_of_squares(&values).is_finite());
            assert!(clip_factor(sum_of_squares(&values).sqrt(), 1.0).is_nan());
        }
    }

    #[test]
    fn the_factor_is_that_of_pytorch() {
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), (1.0 / (4.0 + 1e-6)) as f32);
        assert_eq!(clip_factor(1.0, 1.0), (1.0 / 1.000_001) as f32);
    }
}
