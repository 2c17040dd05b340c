//! How a result is compared with the expected one.

/// A result of an op beside that of its reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison<'a> {
    pub(crate) op: &'static str,
    pub(crate) what: &'static str,
    pub(crate) found: &'a [f64],
    pub(crate) expected: &'a [f64],
    /// Largest difference that rounding explains, as a share of the largest expected value.
    pub(crate) tolerance: f64,
}

/// What takes the comparisons.
pub(crate) type Sink<'a> = dyn FnMut(&Comparison<'_>) + 'a;

/// Index and size of the largest difference; one that is not a number counts as infinite.
pub(crate) fn largest_difference(found: &[f64], expected: &[f64]) -> (usize, f64) {
    let difference = |(found, expected): (&f64, &f64)| {
        let difference = (found - expected).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    };
    let differences = found.iter().zip(expected).map(difference).enumerate();
    differences.fold((0, 0.0), |worst, next| if next.1 > worst.1 { next } else { worst })
}

// === impl Comparison ===

impl Comparison<'_> {
    /// See [`OpCheck::max_relative_error`](super::OpCheck). No values at all prove nothing, and so do not pass.
    pub(super) fn relative_error(&self) -> f64 {
        if self.found.len() != self.expected.len() || self.found.is_empty() {
            return f64::INFINITY;
        }
        let scale = self.expected.iter().fold(0.0, |greatest: f64, value| greatest.max(value.abs()));
        match largest_difference(self.found, self.expected).1 {
            0.0 => 0.0,
            difference if difference.is_finite() => difference / scale,
            _ => f64::INFINITY,
        }
    }
}
