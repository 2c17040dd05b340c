//! What the parity tests share: reproducible values, comparison against `f64`, numeric derivatives.

use crate::self_test::comparison::{Comparison, largest_difference};
pub(crate) use crate::self_test::values::narrow;
use crate::self_test::values::{Random, wide};

/// Reproducible values in -1..1.
pub(crate) fn uniform(count: usize, seed: u64) -> Vec<f64> {
    Random::new(seed).values(count)
}

/// Equal within `tolerance`, relative to the largest expected value (or 1).
pub(crate) fn assert_close<T: Copy + Into<f64>>(what: &str, found: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let found = wide(found);
    let (index, difference) = largest_difference(&found, expected);
    let (found, expected) = (found.get(index), expected.get(index));
    assert!(difference <= tolerance * scale, "{what}[{index}]: {found:?} against {expected:?} (scale {scale})");
}

/// [`assert_close`] for what the ops and the self-test compare.
pub(crate) fn assert_comparison(comparison: &Comparison) {
    let Comparison { op, what, found, expected, tolerance } = *comparison;
    assert_close(&format!("{op}: {what}"), found, expected, tolerance);
}

/// `gradient` is the derivative of `f` at `x`, by central differences.
pub(crate) fn assert_derivative(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len(), "{what}: length");
    let mut moved = x.to_vec();
    for index in 0..x.len() {
        moved[index] = x[index] + STEP;
        let above = f(&moved);
        moved[index] = x[index] - STEP;
        let below = f(&moved);
        moved[index] = x[index];
        let slope = (above - below) / (2.0 * STEP);
        assert!(
            (slope - gradient[index]).abs() < 1e-6 * (1.0 + slope.abs()),
            "{what}[{index}]: {slope} against {}",
            gradient[index]
        );
    }
}
