//! Differences and the tolerances they are held to.

use serde_json::{Map, Value, json};

/// The measured differences of a fixture; remembers which passed their tolerance.
#[derive(Debug, Default)]
pub struct Report {
    values: Map<String, Value>,
    held: Vec<Held>,
    failed: Vec<String>,
}

/// A difference that is held to something.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// What differs.
    pub name: String,
    /// By how much.
    pub difference: f64,
    /// What is allowed.
    pub tolerance: f64,
}

impl Report {
    /// A difference that must not exceed `tolerance`; NaN always does.
    pub fn check(&mut self, name: &str, difference: f64, tolerance: f64) {
        if difference.is_nan() || difference > tolerance {
            self.failed.push(format!("{name}: {difference:.3e} > {tolerance:.0e}"));
        }
        self.held.push(Held { name: name.into(), difference, tolerance });
        self.note(name, difference);
    }

    /// Everything that is held to a tolerance.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// A difference that is only reported.
    pub fn note(&mut self, name: &str, difference: f64) {
        let value = if difference.is_finite() { json!(difference) } else { json!(difference.to_string()) };
        self.values.insert(name.into(), value);
    }

    /// Something that could not be measured.
    pub fn fail(&mut self, name: &str, reason: impl std::fmt::Display) {
        self.failed.push(format!("{name}: {reason}"));
    }

    /// Whether everything is within its tolerance.
    pub fn passed(&self) -> bool {
        self.failed.is_empty()
    }

    /// One JSON object.
    pub fn json(&self, fixture: &str) -> Value {
        json!({ "fixture": fixture, "ok": self.passed(), "failed": self.failed, "differences": self.values })
    }
}

/// Largest absolute difference; NaN or lengths that differ give NaN.
pub(super) fn absolute(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    largest(found.iter().zip(expected).map(|(f, e)| f64::from(f - e).abs()))
}

/// Largest absolute difference over the rows (of `width` values) where `keep` is set.
pub(super) fn absolute_rows(found: &[f32], expected: &[f32], width: usize, keep: &[bool]) -> f64 {
    if found.len() != expected.len() || found.len() != keep.len() * width {
        return f64::NAN;
    }
    let rows = found.chunks_exact(width).zip(expected.chunks_exact(width)).zip(keep);
    largest(rows.filter(|(_, keep)| **keep).map(|((f, e), _)| absolute(f, e)))
}

/// Largest relative difference of two series.
pub(super) fn relative(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    largest(found.iter().zip(expected).map(|(f, e)| (f - e).abs() / e.abs()))
}

/// Largest absolute difference as a share of the largest expected value.
pub fn share_of_maximum(found: &[f32], expected: &[f32]) -> f64 {
    let top = largest(expected.iter().map(|e| f64::from(e.abs())));
    let difference = absolute(found, expected);
    if difference == 0.0 { 0.0 } else { difference / top }
}

/// The largest value, NaN if any is.
pub(super) fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |top, value| if top.is_nan() || value.is_nan() { f64::NAN } else { f64::max(top, value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_a_number_never_passes() {
        let mut report = Report::default();
        report.check("a", absolute(&[1.0, f32::NAN, 2.0], &[1.0, 0.0, 2.0]), 1e9);
        report.check("b", absolute(&[1.0], &[1.0, 2.0]), 1e9);
        assert!(!report.passed());
        assert_eq!(report.json("x")["failed"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn differences_are_the_largest_ones() {
        assert_eq!(absolute(&[1.0, -2.0], &[1.5, -2.0]), 0.5);
        assert_eq!(absolute_rows(&[1.0, 9.0], &[1.0, 0.0], 1, &[true, false]), 0.0);
        assert_eq!(share_of_maximum(&[1.0, 4.0], &[2.0, 4.0]), 0.25);
        assert_eq!(relative(&[1.0, 3.0], &[1.0, 4.0]), 0.25);
    }
}
