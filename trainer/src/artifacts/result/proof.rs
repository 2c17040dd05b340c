//! What was checked after a run, so that its numbers can be believed. Whoever runs it measures; here it is judged.

use serde::{Deserialize, Serialize};

use crate::proof::{Change, OpCheck, self_test_problem};

/// The checks of a run; one that is absent was not made, and then nothing is proven.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The base is what it was.
    pub base: Option<BaseCheck>,
    /// The adapter learnt something.
    pub adapter: Option<Change>,
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
            self.adapter.as_ref().map_or_else(|| missing("that the adapter learnt something"), Change::problem),
        ];
        if self.ops.is_empty() {
            failures.push(missing("that the ops compute what they should"));
        }
        failures.push(self_test_problem(&self.ops));
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
        type Case = (fn(&mut Proof), &'static str);
        let broken: [Case; 8] = [
            (|proof| proof.base.as_mut().unwrap().sha256_after = "ab13".into(), "base model changed"),
            (
                |proof| {
                    *proof.base.as_mut().unwrap() =
                        BaseCheck { sha256_before: String::new(), sha256_after: String::new() }
                },
                "base model",
            ),
            (|proof| proof.adapter.as_mut().unwrap().modules_not_finite = 2, "not finite"),
            (
                |proof| {
                    let adapter = proof.adapter.as_mut().unwrap();
                    (adapter.modules.changed, adapter.routed_experts.changed) = (0, 0);
                },
                "changed none",
            ),
            (|proof| proof.ops[1].max_relative_error = Some(2e-3), "delta_rule (output): off by 2.0e-3"),
            (|proof| proof.ops[0].max_relative_error = None, "not a number or missing"),
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
