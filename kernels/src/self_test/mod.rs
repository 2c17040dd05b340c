//! The ops of this very machine and binary against their references, in the time of a blink.
//!
//! The parity tests run where the program is built. What a run computes depends also on the processor it lands on (which
//! vector instructions there are, which kernels the products choose), so every run repeats the comparison for itself:
//! each op that training uses, forward and every gradient, on small random arguments of awkward sizes. What an argument
//! looks like, and how it is compared, is written once and used by both.
//!
//! Errors are relative to the largest expected value of a result. A tolerance is several times the worst of two hundred
//! seeds: another processor adds in another order, and a seed must not decide whether a run may start. Roundings are part of NF4, FP8 and the optimiser's 8-bit
//! moments, so there the tolerance is 0.

pub(crate) mod attention;
pub(crate) mod comparison;
mod conv;
mod cross_entropy;
pub(crate) mod delta_rule;
pub(crate) mod lora_linear;
pub(crate) mod moe;
mod norm;
mod optimizer;
mod rope;
mod router;
mod stored;
mod swiglu;
#[cfg(test)]
mod tests;
pub(crate) mod values;

use crate::Result;
use comparison::{Comparison, Sink};
use values::Random;

/// One result of one op beside that of its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpCheck {
    /// The op, with its variant where it has several.
    pub op: &'static str,
    /// Which of its results: "forward", "gradient of x" and so on.
    pub what: &'static str,
    /// The largest difference, as a share of the largest expected value; infinite where a value is not a number, is
    /// missing, or should be zero and is not.
    pub max_relative_error: f64,
    /// What rounding explains.
    pub tolerance: f64,
}

// === impl OpCheck ===

impl OpCheck {
    /// Whether the op computes what it should.
    pub fn holds(&self) -> bool {
        // NaN is not at most anything.
        self.max_relative_error <= self.tolerance
    }

    fn of(comparison: &Comparison) -> Self {
        let Comparison { op, what, tolerance, .. } = *comparison;
        Self { op, what, max_relative_error: comparison.relative_error(), tolerance }
    }
}

/// Compares every op that training uses with its reference, on arguments drawn from `seed`.
///
/// An op that refuses its arguments is an error; one whose numbers are wrong is a check that does not hold.
pub fn run(seed: u64) -> Result<Vec<OpCheck>> {
    let mut checks = Vec::new();
    compare_all(seed, &mut |comparison| checks.push(OpCheck::of(comparison)))?;
    Ok(checks)
}

/// Every comparison, in a fixed order.
fn compare_all(seed: u64, sink: &mut Sink<'_>) -> Result<()> {
    let random = &mut Random::new(seed);
    stored::compare_nf4(random, sink)?;
    stored::compare_fp8(random, sink)?;
    lora_linear::compare_all(random, sink)?;
    router::compare_all(random, sink)?;
    moe::compare_all(random, sink)?;
    attention::compare_all(random, sink)?;
    rope::compare_all(random, sink)?;
    conv::compare_all(random, sink)?;
    delta_rule::compare_all(random, sink)?;
    norm::compare_all(random, sink)?;
    swiglu::compare_all(random, sink)?;
    cross_entropy::compare_all(random, sink)?;
    optimizer::compare_all(random, sink)
}
