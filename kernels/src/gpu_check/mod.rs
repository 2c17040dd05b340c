//! Every op of a GPU beside its reference, on random arguments: what tests do with the emulator, and the same again on a
//! card.
//!
//! A reference computes in `f64`, from arguments that are rounded as the GPU gets them. Errors are `‖found - expected‖ /
//! ‖expected‖` over all values of a result: 1e-2 is allowed where the GPU computes in bf16, 2e-2 for gradients, 1e-5 for
//! what is computed in `f32`, and nothing where roundings are part of a format.
//!
//! A check draws its arguments from [`Random`], runs the op, and hands what it found and what was expected to
//! [`Checks`]. It takes its sizes from [`Checks::sizes`]: odd ones that the emulator has done in a moment, or those of
//! real layers.

mod adamw;
mod attention;
mod conv;
mod cross_entropy;
mod delta_rule;
mod elements;
mod experts;
mod gemm;
mod grad_norm;
mod linear;
mod nf4;
mod noise;
mod norm;
mod quantize;
mod rope;
mod router;
mod swiglu;
#[cfg(all(test, feature = "emulation"))]
mod tests;

use half::bf16;

use crate::gpu::{Buffer, Element, Gpu};
use crate::{Error, Result};

pub(crate) use crate::self_test::values::Random;

/// What is allowed where a GPU computes in bf16.
pub(crate) const BF16: f64 = 1e-2;
/// What is allowed for gradients that a GPU computes in bf16.
pub(crate) const BF16_GRADIENT: f64 = 2e-2;
/// What is allowed where a GPU computes in `f32`.
pub(crate) const F32: f64 = 1e-5;
/// Roundings are part of the result.
pub(crate) const EXACT: f64 = 0.0;

/// How large arguments are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// As small as they can be and still reach every path.
    Small,
    /// Those of real layers.
    Real,
}

/// One result of one op beside that of its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The op and its size.
    pub case: String,
    /// Which of its results: "forward", "gradient of x" and so on.
    pub what: &'static str,
    /// How far it is off, as a share of the expected; infinite where a value is not a number or is missing.
    pub error: f64,
    /// What is allowed.
    pub tolerance: f64,
    /// A hash of the values: the same arguments must give the same bits.
    pub digest: u64,
}

/// A family of checks: its name, and what runs it.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    run: fn(&mut Checks<'_>) -> Result<()>,
}

/// All families, in the order in which they build upon each other.
pub const FAMILIES: &[Family] = &[
    Family { name: "noise", run: noise::check },
    Family { name: "nf4", run: nf4::check },
    Family { name: "elements", run: elements::check },
    Family { name: "norm", run: norm::check },
    Family { name: "rope", run: rope::check },
    Family { name: "swiglu", run: swiglu::check },
    Family { name: "conv", run: conv::check },
    Family { name: "gemm", run: gemm::check },
    Family { name: "linear", run: linear::check },
    Family { name: "attention", run: attention::check },
    Family { name: "delta rule", run: delta_rule::check },
    Family { name: "router", run: router::check },
    Family { name: "experts", run: experts::check },
    Family { name: "cross entropy", run: cross_entropy::check },
    Family { name: "adamw", run: adamw::check },
    Family { name: "grad norm", run: grad_norm::check },
    Family { name: "quantize", run: quantize::check },
];

/// Where a check finds what it needs, and leaves what it found.
pub(crate) struct Checks<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) sizes: Sizes,
    pub(crate) random: Random,
    case: String,
    done: Vec<Check>,
}

// === impl Family ===

impl Family {
    /// Compares on arguments drawn from `seed`.
    pub fn run(&self, gpu: &Gpu, sizes: Sizes, seed: u64) -> Result<Vec<Check>> {
        let mut checks = Checks { gpu, sizes, random: Random::new(seed), case: String::new(), done: Vec::new() };
        match (self.run)(&mut checks) {
            Ok(()) => Ok(checks.done),
            // Which of its cases it was.
            Err(error) => Err(Error::Gpu { what: checks.case, reason: error.to_string() }),
        }
    }
}

// === impl Check ===

impl Check {
    /// Whether the op computes what it should.
    pub fn holds(&self) -> bool {
        // NaN is not at most anything.
        self.error <= self.tolerance
    }
}

// === impl Checks ===

impl Checks<'_> {
    /// Names what is compared from now on.
    pub(crate) fn case(&mut self, name: impl Into<String>) {
        self.case = name.into();
    }

    /// Values in -1..1 as bf16, and the same in `f64`.
    pub(crate) fn bf16(&mut self, count: usize) -> Result<(Buffer<bf16>, Vec<f64>)> {
        self.bf16_within(1.0, count)
    }

    /// Values in `-limit..limit` as bf16, and the same in `f64`.
    pub(crate) fn bf16_within(&mut self, limit: f64, count: usize) -> Result<(Buffer<bf16>, Vec<f64>)> {
        let values: Vec<bf16> = self.random.values(count).iter().map(|value| bf16::from_f64(limit * value)).collect();
        Ok((self.gpu.of(&values)?, values.iter().map(|value| value.to_f64()).collect()))
    }

    /// Values in -1..1 as `f32`, and the same in `f64`.
    pub(crate) fn f32(&mut self, count: usize) -> Result<(Buffer<f32>, Vec<f64>)> {
        let values = self.random.values(count);
        Ok((self.gpu.of(&crate::self_test::values::narrow(&values))?, values))
    }

    /// Takes down what was found beside what was expected.
    pub(crate) fn compare<T>(
        &mut self,
        what: &'static str,
        found: &Buffer<T>,
        expected: &[f64],
        tolerance: f64,
    ) -> Result<()>
    where
        T: Element + Number,
    {
        self.compare_values(what, &found.download()?, expected, tolerance);
        Ok(())
    }

    /// Takes down values that were found beside what was expected.
    pub(crate) fn compare_values<T: Number>(
        &mut self,
        what: &'static str,
        found: &[T],
        expected: &[f64],
        tolerance: f64,
    ) {
        let digest = found
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, value| (hash ^ value.bits()).wrapping_mul(0x0000_0100_0000_01b3));
        let wide: Vec<f64> = found.iter().map(|value| value.wide()).collect();
        let error = relative_error(&wide, expected);
        self.done.push(Check { case: self.case.clone(), what, error, tolerance, digest });
    }
}

/// `‖found - expected‖ / ‖expected‖`. No values at all prove nothing, and so do not pass; nor does anything beside zeros.
pub fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() || found.is_empty() {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    match difference {
        0.0 => 0.0,
        difference if difference.is_finite() => difference / norm(&mut expected.iter().copied()),
        _ => f64::INFINITY,
    }
}

/// What a result can be made of.
pub(crate) trait Number {
    fn wide(&self) -> f64;
    fn bits(&self) -> u64;
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Number for $number {
            fn wide(&self) -> f64 {
                f64::from(*self)
            }

            fn bits(&self) -> u64 {
                f64::from(*self).to_bits()
            }
        })*
    };
}

numbers!(u8, i32, u32, f32, f64, bf16);
