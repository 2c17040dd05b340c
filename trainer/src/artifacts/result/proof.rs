//! What was checked after a run, so that its numbers can be believed. Whoever runs it measures; here it is judged.

use serde::{Deserialize, Serialize};

/// The checks of a run; one that is absent was not made, and then nothing is proven.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The base is what it was.
    pub base: Option<BaseCheck>,
    /// The adapter learnt something.
    pub adapter: Option<AdapterCheck>,
    /// Every op computes what its definition says.
    pub ops: Vec<OpCheck>,
    /// The saved file is the adapter that was measured.
    pub reloaded: Option<ReloadCheck>,
}

/// The frozen weights before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseCheck {
    /// SHA-256 of the weights in memory before the first step.
    pub sha256_before: String,
    /// The same after the last.
    pub sha256_after: String,
}

/// What became of the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdapterCheck {
    /// Norm of the update `scale · B·A` of all modules together; 0 before the first step.
    pub update_norm: f64,
    /// Share of the values of all `B` that are not 0; 0 before the first step.
    pub nonzero_share: f64,
}

/// An op beside its reference on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpCheck {
    /// The op.
    pub op: String,
    /// Greatest error, relative to the greatest value.
    pub max_relative_error: f64,
    /// What it may be.
    pub tolerance: f64,
}

/// A loss measured twice over the same examples: with the adapter in memory, and with the saved file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReloadCheck {
    /// With the adapter in memory.
    pub reported_loss: f64,
    /// With the saved file.
    pub reloaded_loss: f64,
    /// How far they may differ, relative to the reported one: the file may hold fewer digits.
    pub tolerance: f64,
}

// === impl Proof ===

impl Proof {
    /// Every check was made and held.
    pub fn proven(&self) -> bool {
        self.failures().is_empty()
    }

    /// The checks that did not hold, or were not made.
    pub fn failures(&self) -> Vec<String> {
        let missing = |what: &str| Some(format!("not checked: {what}"));
        let mut failures: Vec<Option<String>> = vec![
            self.base.as_ref().map_or_else(|| missing("that the base model is unchanged"), BaseCheck::failure),
            self.adapter.as_ref().map_or_else(|| missing("that the adapter learnt something"), AdapterCheck::failure),
        ];
        if self.ops.is_empty() {
            failures.push(missing("that the ops compute what they should"));
        }
        failures.extend(self.ops.iter().map(OpCheck::failure));
        failures.push(
            self.reloaded
                .as_ref()
                .map_or_else(|| missing("that the saved adapter is the one that was measured"), ReloadCheck::failure),
        );
        failures.into_iter().flatten().collect()
    }
}

// === impl BaseCheck ===

impl BaseCheck {
    fn failure(&self) -> Option<String> {
        let Self { sha256_before, sha256_after } = self;
        (sha256_before != sha256_after || sha256_before.is_empty()).then(|| {
            format!("the frozen base model changed: its hash was {sha256_before} and is {sha256_after}; do not use the adapter")
        })
    }
}

// === impl AdapterCheck ===

impl AdapterCheck {
    fn failure(&self) -> Option<String> {
        let Self { update_norm, nonzero_share } = self;
        let learnt = update_norm.is_finite() && *update_norm > 0.0 && *nonzero_share > 0.0;
        (!learnt).then(|| {
            format!("the adapter changes nothing: norm of its update {update_norm}, share of B that is not 0 {nonzero_share}")
        })
    }
}

// === impl OpCheck ===

impl OpCheck {
    /// The error is small enough; NaN is not.
    pub fn holds(&self) -> bool {
        self.max_relative_error <= self.tolerance
    }

    fn failure(&self) -> Option<String> {
        let Self { op, max_relative_error, tolerance } = self;
        (!self.holds()).then(|| format!("{op} is off by {max_relative_error:e} where {tolerance:e} is allowed"))
    }
}

// === impl ReloadCheck ===

impl ReloadCheck {
    /// Difference of the two losses, relative to the reported one.
    pub fn relative_error(&self) -> f64 {
        (self.reloaded_loss - self.reported_loss).abs() / self.reported_loss.abs().max(f64::MIN_POSITIVE)
    }

    fn failure(&self) -> Option<String> {
        let Self { reported_loss, reloaded_loss, tolerance } = self;
        let error = self.relative_error();
        // A NaN is above everything.
        (error.is_nan() || error > *tolerance).then(|| {
            format!(
                "the saved adapter has a loss of {reloaded_loss} where {reported_loss} was reported; they may differ by {tolerance:e} of it"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::good_proof;
    use super::*;

    #[test]
    fn all_checks_together_prove() {
        assert_eq!(good_proof().failures(), Vec::<String>::new());
        assert!(good_proof().proven());
        assert_eq!(Proof::default().failures().len(), 4, "what was not checked is not proven");
    }

    #[test]
    fn each_check_can_fail() {
        type Change = (fn(&mut Proof), &'static str);
        let broken: [Change; 9] = [
            (|proof| proof.base.as_mut().unwrap().sha256_after = "ab13".into(), "base model changed"),
            (
                |proof| {
                    *proof.base.as_mut().unwrap() =
                        BaseCheck { sha256_before: String::new(), sha256_after: String::new() }
                },
                "base model",
            ),
            (|proof| proof.adapter.as_mut().unwrap().update_norm = 0.0, "changes nothing"),
            (|proof| proof.adapter.as_mut().unwrap().update_norm = f64::NAN, "changes nothing"),
            (|proof| proof.adapter.as_mut().unwrap().nonzero_share = 0.0, "changes nothing"),
            (|proof| proof.ops[1].max_relative_error = 2e-3, "delta_rule is off by 2e-3"),
            (|proof| proof.ops[0].max_relative_error = f64::NAN, "off by NaN"),
            (|proof| proof.reloaded.as_mut().unwrap().reloaded_loss = 1.6, "loss of 1.6 where 1.5 was reported"),
            (|proof| proof.reloaded.as_mut().unwrap().reloaded_loss = f64::NAN, "loss of NaN"),
        ];
        for (change, wanted) in broken {
            let mut proof = good_proof();
            change(&mut proof);
            let failures = proof.failures();
            assert!(failures.len() == 1 && failures[0].contains(wanted) && !proof.proven(), "{failures:?}");
        }
    }

    #[test]
    fn proofs_survive_json() {
        let json = serde_json::to_string(&good_proof()).unwrap();
        assert_eq!(serde_json::from_str::<Proof>(&json).unwrap(), good_proof());
    }
}
